"""What owners are shown of the catalogue, made from what is trusted and from what waits. Pure."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from felloe.catalog.approval.rules import Subject
from felloe.console.catalog_messages import CatalogRow, DecisionRow, Standing
from felloe.domain.approval import Approvals, Decision, Listing, Publication
from felloe.domain.ids import ContentId, NodeId

Words = Mapping[Subject, Mapping[bytes, Decision]]
"""Each curator's newest word on each thing, as far as it counts, by the curator's key."""


class Said(NamedTuple):
    """Who, of the present curators, said what of one content, and who said nothing; names."""

    approve: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    reason: str = ""


def said_of(known: Approvals, words: Words, content: str) -> Said:
    """What the curators say of one content, in the order in which they are listed."""
    spoken = words.get(Subject("content", content), {})
    verdicts = [(one.name, spoken.get(one.key)) for one in known.curators]
    against = [(name, word) for name, word in verdicts if word is not None and word.verdict in ("reject", "withdraw")]
    return Said(
        approve=tuple(name for name, word in verdicts if word is not None and word.verdict == "approve"),
        against=tuple(name for name, _ in against),
        silent=tuple(name for name, word in verdicts if word is None),
        reason=next((word.reason for _, word in reversed(against) if word.reason), ""),
    )


def catalog_rows(
    known: Approvals,
    words: Words,
    publications: Iterable[Publication],
    now: float,
    name_of: Callable[[NodeId], str],
) -> tuple[CatalogRow, ...]:
    """Everything that was published, approved or withdrawn, by name. `now` in Unix seconds."""
    published = {one.listing.content: one for one in publications}
    rows = [_approved(known, words, content, now, name_of) for content in known.approved]
    rows += [_withdrawn(known, words, content, published.get(content), name_of) for content in known.withdrawn]
    rows += [
        _waiting(known, words, one, name_of)
        for content, one in published.items()
        if known.standing(content) == "unknown"
    ]
    return tuple(sorted(rows, key=lambda row: (row.name, row.standing, row.content)))


def decision_rows(known: Approvals, decisions: Iterable[Decision]) -> list[DecisionRow]:
    """What was decided, the newest last."""
    return [
        DecisionRow(
            at=one.made_at,
            curator=curator_name(known, one.by),
            verdict=one.verdict,
            about=one.name or str(one.threshold),
            content=one.content,
            reason=one.reason,
        )
        for one in sorted(decisions, key=lambda one: (one.made_at, one.seen_root, one.seen_targets, one.by))
    ]


def waiting_changes(known: Approvals, words: Words) -> tuple[str, ...]:
    """What some want to change about the curators and others have not agreed to yet, as sentences."""
    sentences: list[str] = []
    for subject, spoken in sorted(words.items()):
        if subject.kind == "content":
            continue
        wishes: dict[str, list[str]] = {}
        for key, word in spoken.items():
            wishes.setdefault(_wish(word), []).append(curator_name(known, key))
        for wish, names in wishes.items():
            sentences.append(f"{', '.join(sorted(names))} ({len(names)} of {known.threshold}): {wish}")
    return tuple(sentences)


def curator_name(known: Approvals, key: bytes) -> str:
    """The curator's name, or the beginning of the key of one who is none any more."""
    curator = known.curator(key)
    return key.hex()[:12] if curator is None else curator.name


def _wish(word: Decision) -> str:
    if word.verdict == "set_threshold":
        return f"{word.threshold} must agree"
    return f"{word.verdict.partition('_')[0]} {word.name} ({word.curator.hex()[:12]})"


def _approved(
    known: Approvals, words: Words, content: ContentId, now: float, name_of: Callable[[NodeId], str]
) -> CatalogRow:
    entry = known.approved[content]
    return _row(
        entry.listing,
        known,
        name_of,
        standing="approved" if now < known.expires_at else "expired",
        at=entry.approved_at,
        approved_by=entry.approved_by,
        rejected_by=said_of(known, words, content).against,
    )


def _withdrawn(
    known: Approvals,
    words: Words,
    content: ContentId,
    published: Publication | None,
    name_of: Callable[[NodeId], str],
) -> CatalogRow:
    entry, said = known.withdrawn[content], said_of(known, words, content)
    if published is None:
        return CatalogRow(
            content=content,
            name=entry.name,
            standing="withdrawn",
            at=entry.at,
            approved_by=said.approve,
            wanted=known.threshold,
            reason=entry.reason,
        )
    return _row(
        published.listing,
        known,
        name_of,
        standing="withdrawn",
        at=entry.at,
        approved_by=said.approve,
        reason=entry.reason,
    )


def _waiting(known: Approvals, words: Words, published: Publication, name_of: Callable[[NodeId], str]) -> CatalogRow:
    said = said_of(known, words, published.listing.content)
    is_rejected = len(known.curators) - len(said.against) < known.threshold
    return _row(
        published.listing,
        known,
        name_of,
        standing="rejected" if is_rejected else "waiting",
        at=published.published_at,
        approved_by=said.approve,
        rejected_by=said.against,
        waits_for=() if is_rejected else said.silent,
        reason=said.reason,
    )


def _row(
    listing: Listing,
    known: Approvals,
    name_of: Callable[[NodeId], str],
    *,
    standing: Standing,
    at: float,
    approved_by: tuple[str, ...] = (),
    rejected_by: tuple[str, ...] = (),
    waits_for: tuple[str, ...] = (),
    reason: str = "",
) -> CatalogRow:
    return CatalogRow(
        content=listing.content,
        name=listing.name,
        standing=standing,
        size=listing.size,
        architecture=listing.architecture,
        quantisation=listing.quantisation,
        made_by=name_of(listing.made_by),
        at=at,
        approved_by=approved_by,
        rejected_by=rejected_by,
        waits_for=waits_for,
        wanted=known.threshold,
        reason=reason,
    )
