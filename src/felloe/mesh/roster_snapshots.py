"""The immutable snapshots that readers of the roster get, built from what the census holds."""

from collections.abc import Callable, Iterable
from types import MappingProxyType

from felloe.domain.ids import NodeId
from felloe.domain.roster import Member, Roster
from felloe.mesh.rules import Census

SEEN_SECONDS = 1.0


class Snapshots:
    """Keeps the newest one. `clock` is monotonic, `wall` is Unix time, both in seconds."""

    def __init__(self, this: NodeId, census: Census, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._this = this
        self._census = census
        self._clock = clock
        self._wall = wall
        self._members: dict[NodeId, Member] = {}
        self._roster = Roster(this, MappingProxyType(self._members), 0)
        self._built = clock()
        self._dirty: set[NodeId] = set()
        self._seen: set[NodeId] = set()

    def changed(self, nodes: Iterable[NodeId]) -> None:
        """The next snapshot shows these members anew."""
        self._dirty.update(nodes)

    def seen(self, node: NodeId) -> None:
        """A member spoke and nothing else changed; that shows within about a second."""
        self._seen.add(node)

    def newest(self) -> Roster:
        """The newest snapshot; `seen_at` in it is at most about a second old."""
        if self._seen and self._clock() - self._built > SEEN_SECONDS:
            return self.build()
        return self._roster

    def build(self) -> Roster:
        """A new snapshot with every change."""
        now = self._built = self._clock()
        wall = self._wall()
        members = self._members.copy()
        for node in self._dirty | self._seen:
            known = self._census.known.get(node)
            if known is None:
                members.pop(node, None)
            else:
                seen_at = wall - (now - known.heard)
                members[node] = Member(record=known.record, load=known.load, alive=known.alive, seen_at=seen_at)
        self._dirty.clear()
        self._seen.clear()
        self._members = members
        self._roster = Roster(self._this, MappingProxyType(members), self._roster.version + 1)
        return self._roster
