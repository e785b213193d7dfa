"""A plan made better piece by piece: a few machines are emptied and filled anew while all others stay as they are.

The prices say where: a machine that gains less than it could is looked at more often than others (a large neighbourhood
search; P. Shaw, "Using Constraint Programming and Local Search Methods to Solve Vehicle Routing Problems", 1998).
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from felloe.placement.auction import Auction
from felloe.placement.joint import Stage
from felloe.placement.packing import Filling, Limit, worth

_MOST_EMPTIED = 8
_SMALL = 1e-6
_SLACK = 1e-7


class Mending:
    """One stage on all machines, given by their kinds."""

    def __init__(self, stage: Stage, machines: Sequence[int], auction: Auction, now: Callable[[], float]) -> None:
        self._stage = stage
        self._kinds = machines
        self._auction = auction
        self._now = now
        # The same on every run, so that plans are.
        self._dice = random.Random(len(machines))  # noqa: S311

    def run(self, fillings: Sequence[Filling], until: float) -> list[Filling]:
        """Each machine alone takes what others leave, where that is worth more."""
        found = list(fillings)
        taken = self._taken(found)
        for machine in range(len(found)):
            if self._now() >= until:
                break
            self._refill(found, taken, machine, priced=False)
        return found

    def again(self, fillings: list[Filling]) -> bool:
        """Empties some machines and fills them in some order; keeps that where it is worth more."""
        chosen = self._choose(fillings)
        before = [fillings[machine] for machine in chosen]
        for machine in chosen:
            fillings[machine] = ()
        taken = self._taken(fillings)
        for machine in chosen:
            self._refill(fillings, taken, machine, priced=True)
        for machine in chosen:
            self._refill(fillings, taken, machine, priced=False)
        if self._is_better(before, [fillings[machine] for machine in chosen]):
            return True
        for machine, filling in zip(chosen, before, strict=True):
            fillings[machine] = filling
        return False

    def _refill(self, fillings: list[Filling], taken: Counter[Limit], machine: int, *, priced: bool) -> None:
        old = fillings[machine]
        mine = self._auction.counted(old)
        gone = frozenset(limit for limit, most in self._stage.left.items() if taken[limit] - mine[limit] >= most)
        offered = self._auction.filling(self._kinds[machine], gone, priced=priced)
        if not old or self._is_better([old], [offered]):
            fillings[machine] = offered
            taken.update(self._auction.counted(offered))
            taken.subtract(mine)

    def _choose(self, fillings: Sequence[Filling]) -> list[int]:
        """Machines drawn by what they lose."""
        losses = [self._auction.loss(kind, filling) for kind, filling in zip(self._kinds, fillings, strict=True)]
        least = _SMALL + sum(losses) / len(losses) / 10
        order = sorted(range(len(fillings)), key=lambda at: -(self._dice.random() ** (1 / (least + losses[at]))))
        return order[: self._dice.randint(2, _MOST_EMPTIED)]

    def _is_better(self, before: Sequence[Filling], after: Sequence[Filling]) -> bool:
        level = self._stage.level
        if any(worth(after, earlier) < worth(before, earlier) - _SLACK for earlier in range(level)):
            return False
        return worth(after, level) > worth(before, level) + _SLACK

    def _taken(self, fillings: Iterable[Filling]) -> Counter[Limit]:
        return Counter(limit for filling in fillings for limit in self._auction.counted(filling).elements())
