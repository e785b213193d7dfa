"""What one kind of machine holds best when every replica has a price: each of its devices is a knapsack."""

from collections import Counter
from collections.abc import Sequence

import numpy
import numpy.typing

from felloe.placement.knapsack import Item, knapsack
from felloe.placement.packing import Filling, Option

_STARTS = 2
_SMALL = 1e-9

Numbers = numpy.typing.NDArray[numpy.float64]


class PricedMachine:
    """One kind of machine and its options."""

    def __init__(self, room: Sequence[int], options: Sequence[Option]) -> None:
        self._room = room
        self.options = options
        self._wishes = [option.choice.wish for option in options]
        # A machine's memory counts only for what lies there alone: beside GPUs it is seldom short.
        self._bins = [{row: size for row, size in option.uses if row} or dict(option.uses) for option in options]
        self._by_row: dict[int, list[int]] = {}
        for at, bins in enumerate(self._bins):
            for row in bins:
                self._by_row.setdefault(row, []).append(at)

    def filling(self, gains: Numbers) -> Filling:
        """A good filling: begins with nothing or with one replica that spans devices, then device after device."""
        wide = [at for at in range(len(self.options)) if len(self._bins[at]) > 1 and gains[at] > _SMALL]
        wide.sort(key=lambda at: -float(gains[at]) / sum(self._density(at)))
        best: tuple[float, list[int]] = (0.0, [])
        for start in [[], *([at] for at in wide[:_STARTS])]:
            found = self._within_memory(self._filled(start, gains), gains)
            gain = float(sum(gains[at] for at in found))
            if gain > best[0]:
                best = gain, found
        return tuple(self.options[at] for at in best[1])

    def _density(self, at: int) -> list[float]:
        return [size / max(1, self._room[row]) for row, size in self._bins[at].items()]

    def _filled(self, start: list[int], gains: Numbers) -> list[int]:
        taken = list(start)
        wishes = {self._wishes[at] for at in taken}
        for row in sorted(self._by_row, key=lambda row: (row == 0, -self._room[row])):
            room = self._room[row] - sum(self._bins[at].get(row, 0) for at in taken)
            items = [
                Item(at, self._wishes[at], self._bins[at][row], float(gains[at]))
                for at in self._by_row[row]
                if gains[at] > _SMALL and len(self._bins[at]) == 1 and self._wishes[at] not in wishes
            ]
            _, chosen = knapsack(items, room)
            taken += chosen
            wishes |= {self._wishes[at] for at in chosen}
        return taken

    def _within_memory(self, taken: list[int], gains: Numbers) -> list[int]:
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
