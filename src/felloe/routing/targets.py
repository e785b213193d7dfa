"""Replicas to draw from, in proportion to what they can do, in the same time for any number of them."""

from collections.abc import Callable, Iterator
from math import frexp
from typing import NamedTuple

from felloe.domain.ids import NodeId
from felloe.domain.roster import NodeRecord, Replica

MOST_SPEED = 65_536.0
"""Tokens a second of one answer; whoever tells of more counts as this fast, so that a lie has a bound."""

_LEAST_SPEED = 1 / 64
_MOST_SLOTS = 4096


class Target(NamedTuple):
    """A replica and the record of the node that has it; `record` is None for this node."""

    node: NodeId
    record: NodeRecord | None
    replica: Replica


class Key(NamedTuple):
    """A replica among all: the node and its number in the node's record."""

    node: NodeId
    number: int


def slots_of(replica: Replica) -> int:
    """How many requests it answers at once, at least one."""
    return min(_MOST_SLOTS, max(1, replica.slots))


def speed_of(replica: Replica, otherwise: float) -> float:
    """Tokens a second of one answer there; `otherwise` where nothing has been measured yet."""
    return min(MOST_SPEED, max(_LEAST_SPEED, replica.speed)) if replica.speed > 0 else otherwise


class _Row:
    """Replicas of like weight: powers of two of slots x speed; those of unknown speed by their slots alone."""

    __slots__ = ("keys", "known", "members", "weight")

    def __init__(self, weight: float, *, known: bool) -> None:
        self.weight = weight
        self.known = known
        self.keys: list[Key] = []
        self.members: list[Target] = []


class Targets:
    """A set of replicas, to which single ones are added and from which they are taken without looking for them.

    A draw takes each in proportion to its slots x speed, rounded to a power of two: among cards of very different speed
    an even draw would give the slow ones more than they can do.
    """

    __slots__ = ("_places", "_rows", "_speeds", "_timed")

    def __init__(self) -> None:
        self._rows: dict[tuple[int, bool], _Row] = {}
        self._places: dict[Key, tuple[tuple[int, bool], int]] = {}
        self._speeds = 0.0
        self._timed = 0

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Target]:
        for row in self._rows.values():
            yield from row.members

    @property
    def typical_speed(self) -> float:
        """The mean of the speeds that are known, in tokens a second; 0 while none is."""
        return self._speeds / self._timed if self._timed else 0.0

    @property
    def varied(self) -> bool:
        """Whether some can do clearly more than others."""
        return len(self._rows) > 1

    def put(self, key: Key, target: Target) -> None:
        """Add one that is not here."""
        replica = target.replica
        speed = speed_of(replica, 0.0)
        known = speed > 0
        if known:
            self._speeds += speed
            self._timed += 1
        mark = (frexp(slots_of(replica) * (speed if known else 1.0))[1], known)
        row = self._rows.get(mark)
        if row is None:
            row = self._rows[mark] = _Row(2.0 ** mark[0], known=known)
        self._places[key] = (mark, len(row.keys))
        row.keys.append(key)
        row.members.append(target)

    def take(self, key: Key) -> None:
        """Take one out if it is here; the last of its row comes to its place."""
        mark, place = self._places.pop(key, (None, 0))
        if mark is None:
            return
        row = self._rows[mark]
        speed = speed_of(row.members[place].replica, 0.0)
        if speed > 0:
            self._timed -= 1
            self._speeds = self._speeds - speed if self._timed else 0.0
        last_key, last = row.keys.pop(), row.members.pop()
        if last_key != key:
            row.keys[place], row.members[place] = last_key, last
            self._places[last_key] = (mark, place)
        elif not row.keys:
            del self._rows[mark]

    def draw(self, random: Callable[[], float]) -> Target:
        """One of them; there must be some. `random` returns numbers in [0, 1)."""
        rows = self._rows
        if len(rows) == 1:
            (row,) = rows.values()
            return row.members[int(random() * len(row.members))]
        otherwise = self.typical_speed or 1.0
        weights = [(row, row.weight if row.known else row.weight * otherwise) for row in rows.values()]
        point = random() * sum(weight * len(row.members) for row, weight in weights)
        for row, weight in weights:
            if point < weight * len(row.members):
                return row.members[int(point / weight)]
            point -= weight * len(row.members)
        return weights[-1][0].members[-1]
