"""What follows from the curators' decisions: the same for everybody who knows them, in whatever order they came.

A decision counts while its maker is a curator, and as long as what it speaks of has not changed since the version that
its maker had seen. Of each curator the newest word on a thing counts. What as many curators say as the threshold asks
for is done; curators first, so that those who come sign what is done with them.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from felloe.domain.approval import (
    LATEST_DATE,
    MOST_APPROVED,
    MOST_CURATORS,
    MOST_WITHDRAWN,
    Approved,
    Curator,
    Decision,
    Withdrawn,
)
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, ModelName

LASTING_SECONDS = 5 * 365 * 86_400
"""How long curators' metadata holds after their newest decision."""

CLOCK_SECONDS = 2 * 3600
"""How far a curator's clock may be ahead of a hub's."""

MOST_LISTED_BYTES = 256 * 1024
MOST_WITHDRAWN_BYTES = 64 * 1024
MOST_ROOT_BYTES = 96 * 1024
MOST_RENEWED_ROOT_BYTES = 128 * 1024
_MOST_FORMER = 64


class Catalogue(Struct, frozen=True, kw_only=True):
    """All that the signed root and targets say. `pin` is the SHA-256 of the first root file.

    `*_until` in Unix seconds. `former` are removed curators' keys and `since` the version that changed a thing last;
    what is neither in a list nor newer than the list's floor was forgotten. `root_bytes` is the size of all roots.
    """

    pin: bytes
    issuer: bytes
    root_version: int
    root_until: int
    root_bytes: int
    threshold: int
    threshold_since: int
    curators: tuple[Curator, ...]
    former: Mapping[bytes, int]
    former_floor: int
    targets_version: int
    targets_until: int
    approved: Mapping[ContentId, Approved]
    withdrawn: Mapping[ContentId, Withdrawn]
    withdrawn_floor: int

    def curator(self, key: bytes) -> Curator | None:
        """The present curator with this raw key."""
        return next((one for one in self.curators if one.key == key), None)

    def content_since(self, content: str) -> int:
        """The version of the targets that changed this content last."""
        known = self.approved.get(ContentId(content)) or self.withdrawn.get(ContentId(content))
        return self.withdrawn_floor if known is None else known.since

    def curator_since(self, key: bytes) -> int:
        """The version of the root that added or removed this curator last."""
        present = self.curator(key)
        return self.former.get(key, self.former_floor) if present is None else present.since


class Subject(NamedTuple):
    """What a decision is about: a content's id, a curator's key in hexadecimal, or nothing more for the threshold."""

    kind: str
    name: str


def subject_of(decision: Decision) -> Subject:
    """What a decision is about."""
    if decision.verdict in ("approve", "reject", "withdraw"):
        return Subject("content", decision.content)
    if decision.verdict == "set_threshold":
        return Subject("threshold", "")
    return Subject("curator", decision.curator.hex())


def counts(catalogue: Catalogue, decision: Decision) -> bool:
    """Whether a decision still speaks, or speaks already, of what is."""
    maker = catalogue.curator(decision.by)
    if maker is None or decision.catalog != catalogue.pin or decision.seen_root < maker.since:
        return False
    # Who claims to have seen what is not there yet has no say until it is.
    if decision.seen_root > catalogue.root_version or decision.seen_targets > catalogue.targets_version:
        return False
    kind = subject_of(decision).kind
    if kind == "content":
        return decision.seen_targets >= catalogue.content_since(decision.content)
    if kind == "threshold":
        return decision.seen_root >= catalogue.threshold_since
    return decision.seen_root >= catalogue.curator_since(decision.curator)


def newest(catalogue: Catalogue, decisions: Iterable[Decision]) -> dict[Subject, dict[bytes, Decision]]:
    """Each curator's newest word on each thing, as far as it counts, by the curator's key."""
    words: dict[Subject, dict[bytes, Decision]] = {}
    for decision in sorted((one for one in decisions if counts(catalogue, one)), key=_order):
        words.setdefault(subject_of(decision), {})[decision.by] = decision
    return words


def check_use(catalogue: Catalogue, decision: Decision, now: float) -> None:
    """Raise `not_curator`, or `invalid_value` with the reason, unless a decision may change something."""
    if catalogue.curator(decision.by) is None:
        raise FelloeError("not_curator", "who decided this is not one of the catalogue's curators")
    if decision.made_at > now + CLOCK_SECONDS:
        raise _useless("it is dated in the future; set the clock of the node where it was made")
    if not counts(catalogue, decision):
        raise _useless("the catalogue has changed since it was made; look at it again, then decide anew")
    match decision.verdict:
        case "approve":
            _check_approval(catalogue, decision)
        case "withdraw":
            if decision.content not in catalogue.approved:
                raise _useless(f"{decision.name} is not approved, so there is nothing to withdraw")
        case "add_curator":
            if not _can_come(catalogue, decision):
                raise _useless(f"{decision.name} is a curator already, or there are {MOST_CURATORS} of them")
        case "set_threshold":
            if decision.threshold > len(catalogue.curators):
                raise _useless(f"there are only {len(catalogue.curators)} curators; add some first")
        case "remove_curator":
            if len(catalogue.curators) <= catalogue.threshold:
                raise _useless("fewer curators than the threshold would be left; lower the threshold first")
        case _:
            pass


def _check_approval(catalogue: Catalogue, decision: Decision) -> None:
    for content, entry in catalogue.approved.items():
        if entry.listing.name == decision.name and content != decision.content:
            raise _useless(f"another content is approved as {decision.name}; withdraw it first, or use another name")
    if len(catalogue.approved) >= MOST_APPROVED or _bytes(catalogue.approved.values()) >= MOST_LISTED_BYTES:
        raise _useless("the catalogue is full; withdraw a model first")


def following(catalogue: Catalogue, decisions: Iterable[Decision], issuer: bytes, issued_at: int) -> Catalogue:
    """The catalogue after all that was decided; the same object where nothing was.

    `issuer` is the raw key that signs for the hubs now, `issued_at` (Unix seconds) says since when.
    """
    words = newest(catalogue, decisions)
    after, dates = _with_curators(catalogue, words)
    if issuer != catalogue.issuer and catalogue.root_bytes < MOST_RENEWED_ROOT_BYTES:
        after, dates = replace(after, issuer=issuer), [*dates, issued_at]
    if after is not catalogue:
        until = max([catalogue.root_until, *(date + LASTING_SECONDS for date in dates)])
        after = replace(after, root_version=catalogue.root_version + 1, root_until=until)
    with_contents, dates = _with_contents(after, words, catalogue.threshold)
    if with_contents is not catalogue:
        # A new root may have other signers, so the targets are signed anew with it.
        until = max([catalogue.targets_until, *(date + LASTING_SECONDS for date in dates)])
        version = catalogue.targets_version + 1
        after = replace(with_contents, targets_version=version, targets_until=until)
    return after


def made_at(now: float, earlier: Iterable[Decision]) -> int:
    """The date of a new decision: now, and later than all that this curator decided before."""
    return min(max([int(now), *(one.made_at + 1 for one in earlier)]), LATEST_DATE)


def _useless(why: str) -> FelloeError:
    return FelloeError("invalid_value", f"the decision cannot be taken: {why}")


def _order(decision: Decision) -> tuple[int, int, int, bytes]:
    return decision.seen_root, decision.seen_targets, decision.made_at, msgspec.json.encode(decision)


def _agreed(words: Mapping[bytes, Decision], verdict: str, threshold: int) -> list[Decision]:
    """The words of those, enough of them, who want the same; of several such groups that with the newest word."""
    groups: dict[bytes, list[Decision]] = {}
    for one in sorted(words.values(), key=_order):
        if one.verdict == verdict:
            groups.setdefault(_wanted(one), []).append(one)
    enough = [group for group in groups.values() if len(group) >= threshold]
    return max(enough, key=lambda group: _order(group[-1]), default=list[Decision]())


def _wanted(decision: Decision) -> bytes:
    """What makes two words the same wish."""
    if decision.verdict == "approve":
        return msgspec.json.encode(decision.listing)
    if decision.verdict == "add_curator":
        return decision.name.encode()
    return b"%d" % decision.threshold


def _with_curators(before: Catalogue, words: Mapping[Subject, Mapping[bytes, Decision]]) -> tuple[Catalogue, list[int]]:
    """Curators who come, then the threshold, then curators who go; and the dates of what was decided."""
    if before.root_bytes >= MOST_ROOT_BYTES:
        return before, []
    after, dates, version = before, list[int](), before.root_version + 1
    known = [(subject, said) for subject, said in sorted(words.items()) if subject.kind == "curator"]
    for _, said in known:
        wish = _agreed(said, "add_curator", before.threshold)
        if wish and _can_come(after, wish[0]):
            curator = Curator(name=wish[0].name, key=wish[0].curator, since=version)
            former = {key: since for key, since in after.former.items() if key != curator.key}
            ordered = tuple(sorted((*after.curators, curator), key=lambda one: one.key))
            after = replace(after, curators=ordered, former=former)
            dates += [one.made_at for one in wish]
    wish = _agreed(words.get(Subject("threshold", ""), {}), "set_threshold", before.threshold)
    if wish and wish[0].threshold != before.threshold and wish[0].threshold <= len(after.curators):
        after = replace(after, threshold=wish[0].threshold, threshold_since=version)
        dates += [one.made_at for one in wish]
    for _, said in known:
        wish = _agreed(said, "remove_curator", before.threshold)
        if wish and after.curator(wish[0].curator) is not None and len(after.curators) > after.threshold:
            after = _without(after, wish[0].curator, version)
            dates += [one.made_at for one in wish]
    return after, dates


def _can_come(catalogue: Catalogue, wish: Decision) -> bool:
    names = {one.name for one in catalogue.curators}
    known = catalogue.curator(wish.curator) is not None
    return not known and wish.name not in names and len(catalogue.curators) < MOST_CURATORS


def _without(catalogue: Catalogue, key: bytes, version: int) -> Catalogue:
    former = {**catalogue.former, key: version}
    floor = catalogue.former_floor
    while len(former) > _MOST_FORMER:
        oldest = min(former, key=lambda one: (former[one], one))
        floor = max(floor, former.pop(oldest))
    left = tuple(one for one in catalogue.curators if one.key != key)
    return replace(catalogue, curators=left, former=former, former_floor=floor)


def _with_contents(
    before: Catalogue, words: Mapping[Subject, Mapping[bytes, Decision]], threshold: int
) -> tuple[Catalogue, list[int]]:
    """Contents that are withdrawn, then those that are approved; and the dates of what was decided."""
    version, dates = before.targets_version + 1, list[int]()
    approved, withdrawn = dict(before.approved), dict(before.withdrawn)
    contents = [(ContentId(subject.name), said) for subject, said in sorted(words.items()) if subject.kind == "content"]
    for content, said in contents:
        wish = _agreed(said, "withdraw", threshold)
        if wish and content in approved:
            name = approved.pop(content).listing.name
            withdrawn[content] = _withdrawn(content, name, wish, threshold, version)
            dates += [one.made_at for one in wish]
    # What was approved a moment ago stays withdrawn: words from before count no more.
    open_ones = [said for content, said in contents if content not in before.approved]
    wishes = [wish for said in open_ones if (wish := _agreed(said, "approve", threshold))]
    names, room = {one.listing.name for one in approved.values()}, MOST_LISTED_BYTES - _bytes(approved.values())
    for wish in sorted(wishes, key=lambda wish: _order(wish[-1])):
        entry = _approved(before, wish, threshold, version)
        room -= _bytes([entry])
        if entry.listing.name in names or len(approved) >= MOST_APPROVED or room < 0:
            continue
        approved[entry.listing.content] = entry
        withdrawn.pop(entry.listing.content, None)
        names.add(entry.listing.name)
        dates += [one.made_at for one in wish]
    if not dates:
        return before, []
    kept, floor = _kept(withdrawn, before.withdrawn_floor)
    return replace(before, approved=approved, withdrawn=kept, withdrawn_floor=floor), dates


def _approved(catalogue: Catalogue, wish: list[Decision], threshold: int, version: int) -> Approved:
    listing = wish[0].listing
    if listing is None:
        raise ValueError("an approval without what it approves")
    names = sorted(one.name for one in catalogue.curators if any(word.by == one.key for word in wish))
    return Approved(listing=listing, approved_at=_date(wish, threshold), approved_by=tuple(names), since=version)


def _withdrawn(content: ContentId, name: ModelName, wish: list[Decision], threshold: int, version: int) -> Withdrawn:
    reason = next((one.reason for one in wish if one.reason), "")
    return Withdrawn(content=content, name=name, reason=reason, at=_date(wish, threshold), since=version)


def _date(wish: list[Decision], threshold: int) -> int:
    """When there were enough of them."""
    return sorted(one.made_at for one in wish)[threshold - 1]


def _kept(withdrawn: dict[ContentId, Withdrawn], floor: int) -> tuple[dict[ContentId, Withdrawn], int]:
    """The newest withdrawals, as many as there is room for; old decisions on the others count no more."""
    kept = dict(withdrawn)
    while len(kept) > MOST_WITHDRAWN or _bytes(kept.values()) > MOST_WITHDRAWN_BYTES:
        oldest = min(kept.values(), key=lambda one: (one.since, one.content))
        floor = max(floor, kept.pop(oldest.content).since)
    return kept, floor


def _bytes(entries: Iterable[Approved] | Iterable[Withdrawn]) -> int:
    return sum(len(msgspec.json.encode(entry)) for entry in entries)
