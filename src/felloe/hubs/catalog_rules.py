"""Where publications and decisions are kept on the state, and what makes room for them. Pure.

Places are numbered and used again, because the state remembers every key that it ever had.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from felloe.domain.approval import (
    MOST_DECISIONS,
    MOST_PUBLICATIONS,
    Approvals,
    CandidateSignature,
    LookAnswer,
    Publication,
    SignedDecision,
)
from felloe.domain.errors import FelloeError
from felloe.hubs.records import DECISION, PUBLICATION, KeptDecision, KeptPublication

MOST_OF_ONE_NODE = 256
MOST_KEPT_BYTES = 16 * 2**20
"""All signed manifests together: every hub has them in memory, and in the file that it saves at each change."""

PAGE_BYTES = 512 * 1024


def publication_slot(
    kept: Mapping[str, KeptPublication],
    new: KeptPublication,
    approvals: Approvals,
    is_member: Callable[[KeptPublication], bool],
) -> str | None:
    """The key for a publication; None where its content is there already. Raises `overloaded`.

    The first that offers a content stays, unless it is not approved and was withdrawn, comes anew from the same node,
    or from one that is no member any more.
    """
    listing = new.publication.listing
    for key, one in kept.items():
        known = one.publication.listing
        if known.content == listing.content:
            same_node = known.made_by == listing.made_by and known != listing
            gone = approvals.standing(known.content) == "withdrawn" or not is_member(one)
            open_ = approvals.standing(known.content) != "approved"
            return key if open_ and known != listing and (same_node or gone) else None
    waiting = [one for one in kept.values() if approvals.standing(one.publication.listing.content) == "unknown"]
    if sum(one.publication.listing.made_by == listing.made_by for one in waiting) >= MOST_OF_ONE_NODE:
        raise FelloeError("overloaded", f"{MOST_OF_ONE_NODE} models of this node wait for the curators already")
    settled = {key: one for key, one in kept.items() if one not in waiting}
    too_large = sum(len(one.envelope) for one in kept.values()) + len(new.envelope) > MOST_KEPT_BYTES
    free = _free(PUBLICATION, kept, MOST_PUBLICATIONS)
    if free is not None and not too_large:
        return free
    if not settled:
        raise FelloeError("overloaded", "too many models wait for the curators; have them decide first")
    # What is decided is kept by those who hold the model.
    return min(settled, key=lambda key: (settled[key].publication.published_at, key))


def decision_slot(
    kept: Mapping[str, KeptDecision],
    new: KeptDecision,
    by: Callable[[SignedDecision], bytes],
    is_settled: Callable[[KeptDecision], bool],
    curators: int,
) -> str | None:
    """The key for a decision; None where it is kept already. Raises `overloaded`; each curator has a fair share.

    Decisions that speak of nothing any more make room, the oldest first; until then they tell what was done.
    """
    if any(one.signed == new.signed for one in kept.values()):
        return None
    settled = {key: one for key, one in kept.items() if is_settled(one)}
    own = sum(by(one.signed) == by(new.signed) for key, one in kept.items() if key not in settled)
    free = _free(DECISION, kept, MOST_DECISIONS)
    if free is not None and own < MOST_DECISIONS // (curators + 1):
        return free
    if not settled or own >= MOST_DECISIONS // (curators + 1):
        raise FelloeError("overloaded", "too many decisions wait for other curators; have them decide first")
    return min(settled, key=lambda key: (settled[key].taken_at, key))


def page(
    decisions: Sequence[SignedDecision],
    publications: Sequence[Publication],
    signatures: Sequence[CandidateSignature],
    after: int,
) -> LookAnswer:
    """The things from number `after` on, as many as one answer takes."""
    things = [*decisions, *publications, *signatures][after:]
    count, room = 0, PAGE_BYTES
    for one in things:
        room -= len(msgspec.msgpack.encode(one))
        if room < 0:
            break
        count += 1
    shown = things[:count]
    return LookAnswer(
        decisions=tuple(one for one in shown if isinstance(one, SignedDecision)),
        publications=tuple(one for one in shown if isinstance(one, Publication)),
        signatures=tuple(one for one in shown if isinstance(one, CandidateSignature)),
        next=after + count if count < len(things) else 0,
    )


def _free(prefix: str, kept: Mapping[str, object], most: int) -> str | None:
    return next((key for number in range(most) if (key := f"{prefix}{number:04}") not in kept), None)
