"""Who offers which model, from one roster snapshot."""

import time
from collections.abc import Callable

from felloe import __version__
from felloe.domain.ids import ModelName
from felloe.domain.models import Capability
from felloe.domain.roster import Member, Replica, Roster
from felloe.routing.rules import Busy, Target, is_open, pressure, spoken_versions

_TIME_SHARE = 50


class Offers:
    """The other nodes' replicas of one model: `ready` may be asked, `free` have a free slot by their last report.

    `known` tells that there is a replica in some state, maybe on a node that is dead or of a version that is not spoken
    here; `capabilities` covers all of them.
    """

    __slots__ = ("capabilities", "free", "known", "ready")

    def __init__(self) -> None:
        self.ready: list[Target] = []
        self.free: list[Target] = []
        self.known = False
        self.capabilities: set[Capability] = set()

    def add(self, member: Member, replica: Replica, *, spoken: bool) -> None:
        """Count a replica of `member`; only where its version is `spoken` here may it be asked."""
        self.known = True
        self.capabilities.update(replica.model.capabilities)
        if replica.state != "ready" or not spoken or not is_open(member):
            return
        target = Target(member.record.id, member.record, replica)
        self.ready.append(target)
        model = replica.model.name
        busy = Busy(member.load.active.get(model, 0), member.load.waiting.get(model, 0))
        if pressure(busy, replica.slots) < 1:
            self.free.append(target)


NO_OFFERS = Offers()


class ModelIndex:
    """Offers by model name for the nodes other than this one; takes time linear in the members to build.

    `version` is this node's own: nodes of a version that does not work with it are never asked.
    """

    def __init__(self, roster: Roster, version: str = __version__) -> None:
        self.roster = roster
        self._offers: dict[ModelName, Offers] = {}
        spoken = spoken_versions(version, roster)
        for node, member in roster.members.items():
            if node == roster.this:
                continue
            understood = member.record.version in spoken
            for replica in member.record.replicas:
                offers = self._offers.get(replica.model.name)
                if offers is None:
                    offers = self._offers[replica.model.name] = Offers()
                offers.add(member, replica, spoken=understood)

    def get(self, model: ModelName) -> Offers:
        """The offers of `model`; `NO_OFFERS` when no other node has it in any state."""
        return self._offers.get(model, NO_OFFERS)


class IndexCache:
    """The index of the newest roster that it pays to have.

    A roster of thousands changes faster than it can be indexed, so building takes at most one fiftieth of the time:
    a network of three sees every change within a millisecond, one of ten thousand within a second. What is drawn
    from an old index is checked against the newest snapshot; only newcomers are seen late.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._index: ModelIndex | None = None
        self._rebuild_at = 0.0

    def get(self, roster: Roster, *, fresh: bool = False) -> ModelIndex:
        """The index to use with `roster`; with `fresh` it is that of `roster` itself."""
        index = self._index
        if index is not None and (index.roster is roster or (not fresh and self._clock() < self._rebuild_at)):
            return index
        started = self._clock()
        index = self._index = ModelIndex(roster)
        finished = self._clock()
        self._rebuild_at = finished + (finished - started) * _TIME_SHARE
        return index
