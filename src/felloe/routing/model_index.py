"""Who offers which model, from one roster snapshot, brought up to date from one snapshot to the next."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import compress
from operator import is_not, ne

from felloe import __version__
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.models import Capability
from felloe.domain.roster import Member, Roster
from felloe.domain.versions import compatible
from felloe.routing.rules import Busy, is_open, pressure
from felloe.routing.targets import Key, Target, Targets

_TIME_SHARE = 50


class Offers:
    """The other nodes' replicas of one model: `ready` may be asked, `free` have a free slot by their last report."""

    __slots__ = ("_capabilities", "_free", "_ready", "_replicas")

    def __init__(self) -> None:
        self._ready = Targets()
        self._free = Targets()
        self._replicas = 0
        self._capabilities: Counter[Capability] = Counter()

    @property
    def ready(self) -> Targets:
        """Those that may be asked."""
        return self._ready

    @property
    def free(self) -> Targets:
        """Those of `ready` that have a free slot by their last report."""
        return self._free

    @property
    def known(self) -> bool:
        """Whether there is a replica in some state, maybe on a node that is dead or of a version not spoken here."""
        return self._replicas > 0

    @property
    def capabilities(self) -> set[Capability]:
        """What any of these replicas, in whatever state, is able to do."""
        return {capability for capability, count in self._capabilities.items() if count}

    def add(self, member: Member, number: int, *, spoken: bool) -> None:
        """Count a replica of `member`; only where its version is `spoken` here may it be asked."""
        replica = member.record.replicas[number]
        self._replicas += 1
        self._capabilities.update(replica.model.capabilities)
        if replica.state != "ready" or not spoken or not is_open(member):
            return
        key, target = Key(member.record.id, number), Target(member.record.id, member.record, replica)
        self._ready.put(key, target)
        model = replica.model.name
        busy = Busy(member.load.active.get(model, 0), member.load.waiting.get(model, 0))
        if pressure(busy, replica.slots) < 1:
            self._free.put(key, target)

    def remove(self, member: Member, number: int) -> None:
        """Take back what `add` did."""
        key = Key(member.record.id, number)
        self._replicas -= 1
        self._capabilities.subtract(member.record.replicas[number].model.capabilities)
        self._ready.take(key)
        self._free.take(key)


NO_OFFERS = Offers()


class ModelIndex:
    """Offers by model name for the nodes other than this one; takes time linear in the members to build.

    `version` is this node's own: nodes of a version that does not work with it are never asked.
    """

    def __init__(self, roster: Roster, version: str = __version__) -> None:
        self.roster = roster
        self._version = version
        self._spoken: dict[str, bool] = {}
        self._offers: dict[ModelName, Offers] = {}
        for member in roster.members.values():
            self._add(member)

    def get(self, model: ModelName) -> Offers:
        """The offers of `model`; `NO_OFFERS` when no other node has it in any state."""
        return self._offers.get(model, NO_OFFERS)

    def follow(self, roster: Roster) -> None:
        """Become the index of a later roster of the same node; the members that are the same cost next to nothing."""
        for before, after in _differences(self.roster.members, roster.members):
            if before is not None:
                self._remove(before)
            if after is not None:
                self._add(after)
        self.roster = roster

    def _add(self, member: Member) -> None:
        if member.record.id == self.roster.this:
            return
        version = member.record.version
        spoken = self._spoken.get(version)
        if spoken is None:
            spoken = self._spoken[version] = compatible(self._version, version)
        for number, replica in enumerate(member.record.replicas):
            offers = self._offers.get(replica.model.name)
            if offers is None:
                offers = self._offers[replica.model.name] = Offers()
            offers.add(member, number, spoken=spoken)

    def _remove(self, member: Member) -> None:
        if member.record.id == self.roster.this:
            return
        for number, replica in enumerate(member.record.replicas):
            name = replica.model.name
            self._offers[name].remove(member, number)
            if not self._offers[name].known:
                del self._offers[name]


def _differences(
    before: Mapping[NodeId, Member], after: Mapping[NodeId, Member]
) -> Iterator[tuple[Member | None, Member | None]]:
    """The members that are not the very same in both; None where there is none."""
    if len(before) == len(after) and not any(map(ne, before, after)):
        # A snapshot is made from a copy of the former one, so that this is the rule, and quick for thousands.
        pairs = zip(before.values(), after.values(), strict=True)
        yield from compress(pairs, map(is_not, before.values(), after.values()))
        return
    for node, member in after.items():
        former = before.get(node)
        if former is not member:
            yield former, member
    for node, former in before.items():
        if node not in after:
            yield former, None


class IndexCache:
    """The index of the newest roster that it pays to have.

    A roster of thousands changes faster than its changes can be looked for, so keeping up takes at most one fiftieth
    of the time: a network of three sees every change at once, one of ten thousand within a tenth of a second. What is
    drawn from an old index is checked against the newest snapshot; only newcomers are seen late.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._index: ModelIndex | None = None
        self._next_at = 0.0

    def get(self, roster: Roster, *, fresh: bool = False) -> ModelIndex:
        """The index to use with `roster`; with `fresh` it is that of `roster` itself."""
        index = self._index
        if index is not None and (index.roster is roster or (not fresh and self._clock() < self._next_at)):
            return index
        started = self._clock()
        if index is None or index.roster.this != roster.this:
            index = self._index = ModelIndex(roster)
        else:
            index.follow(roster)
        finished = self._clock()
        self._next_at = finished + (finished - started) * _TIME_SHARE
        return index
