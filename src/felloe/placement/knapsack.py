"""The most gain that fits into one memory, of at most one item of each model, and which items these are.

Multiple-choice knapsack by dynamic programming over the memory (H. Kellerer, U. Pferschy, D. Pisinger, "Knapsack
Problems", 2004, chapter 11).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy
import numpy.typing

_STATES = 512

_States = numpy.typing.NDArray[numpy.float64]


class Item(NamedTuple):
    """`number` is the caller's own; of the items with one `group` at most one is taken. `size` in MiB."""

    number: int
    group: int
    size: int
    gain: float


def knapsack(items: Sequence[Item], room: int) -> tuple[float, list[int]]:
    """The gain, and the numbers of the items.

    Sizes are counted in about a five-hundredth of the room, rounded up, so that what is chosen fits.
    """
    if room <= 0 or not items:
        return 0.0, []
    unit = -(-room // _STATES)
    capacity = room // unit
    groups: dict[int, list[tuple[int, Item]]] = {}
    for item in items:
        size = -(-item.size // unit)
        if size <= capacity:
            groups.setdefault(item.group, []).append((size, item))
    states = [numpy.zeros(capacity + 1)]
    for group in groups.values():
        before = states[-1]
        after = before.copy()
        for size, item in group:
            numpy.maximum(after[size:], before[: capacity + 1 - size] + item.gain, out=after[size:])
        states.append(after)
    return float(states[-1][capacity]), _traced(list(groups.values()), states, capacity)


def _traced(groups: Sequence[Sequence[tuple[int, Item]]], states: Sequence[_States], at: int) -> list[int]:
    """Which items led to the best state."""
    chosen: list[int] = []
    for number in range(len(groups) - 1, -1, -1):
        value, before = states[number + 1][at], states[number]
        if value == before[at]:
            continue
        for size, item in groups[number]:
            if size <= at and before[at - size] + item.gain == value:
                chosen.append(item.number)
                at -= size
                break
    return chosen
