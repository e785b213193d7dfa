"""What one kind of machine holds best when every replica has a price: each of its devices is a knapsack."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy

from felloe.placement.knapsack import Indices, Items, Numbers, knapsack
from felloe.placement.packing import Filling, Option

_STARTS = 1
_SMALL = 1e-9


class PricedMachine:
    """One kind of machine and its options."""

    def __init__(self, room: Sequence[int], options: Sequence[Option]) -> None:
        self._room = room
        # Items of one wish stand together in every knapsack.
        self.options = sorted(options, key=lambda option: option.choice.wish)
        self.wishes = numpy.array([option.choice.wish for option in self.options], dtype=numpy.int64)
        # A machine's memory counts only for what lies there alone: beside GPUs it is seldom short.
        self._bins = [{row: size for row, size in option.uses if row} or dict(option.uses) for option in self.options]
        self._spanning = [at for at, bins in enumerate(self._bins) if len(bins) > 1]
        rows = sorted({row for bins in self._bins for row in bins}, key=lambda row: (row == 0, -room[row]))
        self._alone = {row: self._on(row, wide=False) for row in rows}
        self._all = {row: self._on(row, wide=True) for row in rows}
        self.wide = len(rows) > 1
        self.charge({})

    def _on(self, row: int, *, wide: bool) -> tuple[Indices, Indices]:
        """Options that lie on this device, with their MiB there; `wide`: also those that lie on others too."""
        found = [at for at, bins in enumerate(self._bins) if row in bins and (wide or len(bins) == 1)]
        return (
            numpy.array(found, dtype=numpy.int64),
            numpy.array([self._bins[at][row] for at in found], dtype=numpy.int64),
        )

    def filling(self, gains: Numbers) -> Filling:
        """A good filling: begins with nothing or with one replica that spans devices, then device after device."""
        wide = [at for at in self._spanning if gains[at] > _SMALL]
        wide.sort(key=lambda at: -float(gains[at]) / sum(self._density(at)))
        best: tuple[float, list[int]] = (0.0, [])
        for start in [[], *([at] for at in wide[:_STARTS])]:
            found = self._within_memory(self._filled(start, gains), gains)
            gain = float(sum(gains[at] for at in found))
            if gain > best[0]:
                best = gain, found
        return tuple(self.options[at] for at in best[1])

    def charge(self, once: Mapping[int, float]) -> None:
        """What each wish pays for being on the machine but once; it keeps several devices from taking the same."""
        self._charged = float(sum(once.values()))
        self._paid = numpy.array([once.get(int(wish), 0.0) for wish in self.wishes])

    def most(self, gains: Numbers) -> tuple[float, Counter[int]]:
        """The most that any filling could gain, and how often the packings behind it take each option.

        Devices are packed one by one. A replica that spans devices is cut, and each piece brings a part of the gain.
        """
        bound = self._charged
        taken: Counter[int] = Counter()
        for row, (found, sizes) in self._all.items():
            shares = numpy.array([self._share(int(at), row) for at in found])
            packed = knapsack(
                self._items(found, sizes, (gains[found] - self._paid[found]) * shares), self._room[row], bound=True
            )
            bound += packed.bound
            for at in packed.chosen:
                taken[int(found[at])] += 1
        return bound, taken

    def _share(self, at: int, row: int) -> float:
        bins = self._bins[at]
        return 1.0 if len(bins) == 1 else bins[row] / sum(bins.values())

    def _items(self, found: Indices, sizes: Indices, gains: Numbers) -> Items:
        return Items(self.wishes[found], sizes, gains)

    def _density(self, at: int) -> list[float]:
        return [size / max(1, self._room[row]) for row, size in self._bins[at].items()]

    def _filled(self, start: Sequence[int], gains: Numbers) -> list[int]:
        """Each device in turn, leaving to others what they need; then again, whatever is left, until all is settled."""
        by_row: dict[int, list[int]] = {row: [] for row in self._alone}
        turns = [gains] if len(by_row) < 2 else [gains - self._paid, gains]
        for mine in turns:
            for row in self._alone:
                others = [at for other, taken in by_row.items() if other != row for at in taken]
                by_row[row] = self._packed(row, [*start, *others], mine)
        return [*start, *(at for taken in by_row.values() for at in taken)]

    def _packed(self, row: int, others: Collection[int], gains: Numbers) -> list[int]:
        """What this device holds best beside what is there of `others`, and of other wishes than theirs."""
        found, sizes = self._alone[row]
        room = self._room[row] - sum(self._bins[at].get(row, 0) for at in others)
        free = ~numpy.isin(self.wishes[found], self.wishes[list(others)]) if others else numpy.ones(len(found), bool)
        packed = knapsack(self._items(found, sizes, numpy.where(free, gains[found], 0.0)), room)
        return [int(found[at]) for at in packed.chosen]

    def _within_memory(self, taken: Sequence[int], gains: Numbers) -> list[int]:
        """Without the poorest replicas until the devices hold the rest."""
        kept = sorted(taken, key=lambda at: -float(gains[at]))
        while kept:
            used: Counter[int] = Counter()
            for at in kept:
                for row, size in self.options[at].uses:
                    used[row] += size
            if all(size <= self._room[row] for row, size in used.items()):
                break
            kept.pop()
        return kept
