"""Many machines searched by prices: every replica of a model has one, and each machine holds what gains it the most.

First prices come from `relaxation.py`; then a price falls where fewer replicas are taken than may be, and rises where
more are (Lagrangian relaxation with steps after B. T. Polyak, "Minimization of unsmooth functionals", 1969). What all
machines could gain at any prices, and what is paid for all replicas, together bound every plan.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy

from felloe.placement.joint import Stage
from felloe.placement.knapsack import Numbers
from felloe.placement.packing import Filling, Limit, Option, Problem, counts_towards
from felloe.placement.pricing import PricedMachine
from felloe.placement.relaxation import relax

_MOST_REMEMBERED = 10_000


class Auction:
    """Prices for one stage; `bound` is the most that any plan could be worth at its level."""

    def __init__(self, problem: Problem, stage: Stage, seconds: float, now: Callable[[], float]) -> None:
        self._problem = problem
        self._now = now
        self._stage = stage
        self._times = [len(kind.machines) for kind in problem.kinds]
        self._kinds = [
            PricedMachine(room, [option for option in options if option.level <= stage.level])
            for room, options in zip(problem.rooms, problem.options, strict=True)
        ]
        relaxed = relax(problem, stage, [kind.options for kind in self._kinds], seconds)
        self.bound = relaxed.bound
        self._prices = dict(relaxed.limits)
        for kind, once in zip(self._kinds, relaxed.once, strict=True):
            # A machine with one memory has each model once by itself.
            if kind.wide:
                kind.charge(once)
        self._brings = [*relaxed.earlier, 1.0]
        self._limits = [[self.limits(option) for option in kind.options] for kind in self._kinds]
        self._worths = [
            numpy.array([self._brings[option.level] * option.choice.worth for option in kind.options], dtype=float)
            for kind in self._kinds
        ]
        self._most = [0.0 for _ in self._kinds]
        self._price_all()

    def bid(self, reached: float, until: float) -> None:
        """Every kind of machine says what it could gain; then prices move, the more the further the best plan is off.

        Without time for all of them nothing changes.
        """
        wanted: Counter[Limit] = Counter()
        most: list[float] = []
        for kind, gains, times in zip(self._kinds, self._gains, self._times, strict=True):
            if self._now() >= until:
                return
            gain, taken = kind.most(gains)
            most.append(gain)
            for at, count in taken.items():
                for limit in self._limits[len(most) - 1][at]:
                    wanted[limit] += count * times
        self._most = most
        bound = sum(self._prices[limit] * left for limit, left in self._stage.left.items())
        bound += sum(gain * times for gain, times in zip(most, self._times, strict=True))
        bound -= sum(brings * least for brings, least in zip(self._brings, self._stage.least, strict=False))
        self.bound = min(self.bound, bound)
        excess = {limit: wanted[limit] - left for limit, left in self._stage.left.items()}
        moved = {limit: more for limit, more in excess.items() if more > 0 or self._prices[limit] > 0}
        length = sum(more * more for more in moved.values())
        if length:
            step = max(0.0, bound - reached) / length
            for limit, more in moved.items():
                self._prices[limit] = max(0.0, self._prices[limit] + step * more)
            self._price_all()

    def filling(self, kind: int, gone: frozenset[Limit], *, priced: bool = True) -> Filling:
        """What gains a machine of this kind the most while none is left of some; without prices: what is worth most."""
        mine = frozenset(gone & self._known[kind])
        key = (kind, mine, priced)
        found = self._fillings.get(key)
        if found is None:
            gains = (self._gains if priced else self._worths)[kind].copy()
            for number, limits in enumerate(self._limits[kind]):
                if not mine.isdisjoint(limits):
                    gains[number] = 0.0
            if len(self._fillings) > _MOST_REMEMBERED:
                self._fillings.clear()
            found = self._fillings[key] = self._kinds[kind].filling(gains)
        return found

    def plan(self, machines: Sequence[int], until: float) -> list[Filling]:
        """Fillings of machines (given by their kinds) at the best prices, the ones with most memory first."""
        left = dict(self._stage.left)
        fillings: list[Filling] = [() for _ in machines]
        order = sorted(range(len(machines)), key=lambda at: (-sum(self._problem.rooms[machines[at]][1:]), at))
        for at in order:
            if self._now() >= until:
                break
            gone = frozenset(limit for limit, count in left.items() if count < 1)
            fillings[at] = self.filling(machines[at], gone)
            for limit, count in self.counted(fillings[at]).items():
                left[limit] -= count
        return fillings

    def loss(self, kind: int, filling: Filling) -> float:
        """How much less a machine gains than it could at these prices."""
        return max(0.0, self._most[kind] - sum(self._gain(option) for option in filling))

    def limits(self, option: Option) -> tuple[Limit, ...]:
        """Which of the stage's limits an option takes one of."""
        return tuple(limit for limit in counts_towards(self._problem, option) if limit in self._stage.left)

    def counted(self, filling: Iterable[Option]) -> Counter[Limit]:
        """How much it takes of each limit."""
        return Counter(limit for option in filling for limit in self.limits(option))

    def _price_all(self) -> None:
        self._known = [frozenset(limit for limits in mine for limit in limits) for mine in self._limits]
        self._fillings: dict[tuple[int, frozenset[Limit], bool], Filling] = {}
        self._gains: list[Numbers] = [
            worths - numpy.array([sum(self._prices[limit] for limit in limits) for limits in mine], dtype=float)
            for worths, mine in zip(self._worths, self._limits, strict=True)
        ]

    def _gain(self, option: Option) -> float:
        paid = sum(self._prices[limit] for limit in self.limits(option))
        return self._brings[option.level] * option.choice.worth - paid
