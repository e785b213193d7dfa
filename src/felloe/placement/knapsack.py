"""The most gain that fits into one memory, of at most one item of each model, and which items these are.

Multiple-choice knapsack (H. Kellerer, U. Pferschy, D. Pisinger, "Knapsack Problems", 2004, chapter 11): a price for
memory gives a bound and a first answer; items that no answer better than it can hold are left out, and what is left is
solved by dynamic programming over the memory.
"""

from typing import NamedTuple

import numpy
import numpy.typing

_STATES = (256, 4096)
_STEPS = 16
_SMALL = 1e-9
_ENOUGH = 1e-4
"""Of the bound: nearer to it nobody looks for a better answer."""

Numbers = numpy.typing.NDArray[numpy.float64]
Indices = numpy.typing.NDArray[numpy.int64]


class Items(NamedTuple):
    """Of the items with one group at most one is taken. Equal groups stand together; sizes in MiB, gains above 0."""

    groups: Indices
    sizes: Indices
    gains: Numbers


class Packed(NamedTuple):
    """Which items are taken, what they gain, and the most that any that fit could gain."""

    chosen: list[int]
    gain: float
    bound: float


def knapsack(items: Items, room: int, *, bound: bool = False) -> Packed:
    """The best items for the room; `bound`: with a bound as near as can be, which takes as long again.

    Sizes are counted in steps, few at first and 4,096 then: rounded up for what is taken, so that it fits, and down for
    the bound.
    """
    fitting = numpy.flatnonzero((items.sizes <= room) & (items.gains > 0))
    if room <= 0 or not len(fitting):
        return Packed([], 0.0, 0.0)
    mine = Items(items.groups[fitting], items.sizes[fitting], items.gains[fitting])
    priced = _Priced(mine, room)
    found = Packed(fitting[priced.chosen].tolist(), priced.gain, priced.bound)
    for steps in _STATES:
        if found.bound - found.gain <= _ENOUGH * found.bound:
            return found
        fixed, rest = priced.core(found.gain)
        left = room - int(mine.sizes[fixed].sum())
        already = float(mine.gains[fixed].sum())
        core = Items(mine.groups[rest], mine.sizes[rest], mine.gains[rest])
        unit = max(1, -(-left // steps))
        gain, chosen = _solved(core, -(-core.sizes // unit), left // unit)
        if already + gain > found.gain:
            taken = fitting[numpy.concatenate([fixed, rest[chosen]])]
            found = Packed(taken.tolist(), already + gain, found.bound)
        if unit == 1:
            return found._replace(bound=min(found.bound, found.gain))
        if bound and steps == _STATES[-1]:
            most = already + _solved(core, core.sizes // unit, left // unit)[0]
            found = found._replace(bound=min(found.bound, max(found.gain, most)))
    return found


class _Priced:
    """The price of memory at which just about as much is wanted as there is."""

    def __init__(self, items: Items, room: int) -> None:
        self._items = items
        new = numpy.ones(len(items.groups), dtype=bool)
        new[1:] = items.groups[1:] != items.groups[:-1]
        self._starts = numpy.flatnonzero(new)
        self._group = numpy.cumsum(new) - 1
        low, high = 0.0, float((items.gains / numpy.maximum(items.sizes, 1)).max()) * 2
        self.bound = numpy.inf
        self.chosen = numpy.empty(0, dtype=numpy.int64)
        self.gain = 0.0
        self._net = items.gains
        self._best = items.gains
        for step in range(_STEPS):
            price = 0.0 if not step else (low + high) / 2
            net = items.gains - price * items.sizes
            best = numpy.maximum(0.0, numpy.maximum.reduceat(net, self._starts))
            bound = float(best.sum()) + price * room
            if bound < self.bound:
                self.bound, self._net, self._best = bound, net, best
            wanted = ((net == best[self._group]) & (net > 0)).nonzero()[0]
            first = numpy.ones(len(wanted), dtype=bool)
            first[1:] = self._group[wanted[1:]] != self._group[wanted[:-1]]
            wanted = wanted[first]
            if items.sizes[wanted].sum() <= room:
                gain = float(items.gains[wanted].sum())
                if gain > self.gain:
                    self.gain, self.chosen = gain, wanted
                high = price
                if not step:
                    break
            else:
                low = price

    def core(self, gain: float) -> tuple[Indices, Indices]:
        """Items that every answer with more gain has, and those that it may have beside them."""
        slack = self.bound - gain + _SMALL
        kept = numpy.flatnonzero(self._best[self._group] - self._net <= slack)
        counts = numpy.bincount(self._group[kept], minlength=len(self._best))
        alone = (counts[self._group[kept]] == 1) & (self._best[self._group[kept]] > slack)
        return kept[alone], kept[~alone]


def _solved(items: Items, sizes: Indices, capacity: int) -> tuple[float, Indices]:
    """Dynamic programming; `sizes` are in the same steps as the capacity."""
    ends = [*numpy.flatnonzero(numpy.diff(items.groups)) + 1, len(sizes)] if len(sizes) else []
    steps, gains = sizes.tolist(), items.gains.tolist()
    states = [numpy.zeros(capacity + 1)]
    groups: list[range] = []
    first = 0
    for end in ends:
        before = states[-1]
        after = before.copy()
        for at in range(first, end):
            if steps[at] <= capacity:
                numpy.maximum(
                    after[steps[at] :], before[: capacity + 1 - steps[at]] + gains[at], out=after[steps[at] :]
                )
        states.append(after)
        groups.append(range(first, int(end)))
        first = int(end)
    chosen: list[int] = []
    at = capacity
    for number in range(len(groups) - 1, -1, -1):
        value, before = states[number + 1][at], states[number]
        if value == before[at]:
            continue
        for item in groups[number]:
            if steps[item] <= at and before[at - steps[item]] + gains[item] == value:
                chosen.append(item)
                at -= steps[item]
                break
    return float(states[-1][capacity]), numpy.array(chosen, dtype=numpy.int64)
