"""Many machines searched by prices: every replica of a model has one, and each machine holds what gains it the most.

Prices and bound come from `relaxation.py`. A plan comes from the prices, machine after machine, while replicas last.
"""

from collections.abc import Mapping

import numpy
from msgspec.structs import replace

from felloe.placement.joint import Stage
from felloe.placement.packing import Filling, Limit, Option, Problem, counts_towards
from felloe.placement.pricing import Numbers, PricedMachine
from felloe.placement.relaxation import Relaxed, relax


class Auction:
    """Prices for one stage; `bound` is the most that any plan could be worth at its level."""

    def __init__(self, problem: Problem, stage: Stage, seconds: float) -> None:
        self._problem = problem
        self._stage = stage
        self._kinds = [
            PricedMachine(room, [option for option in options if option.level <= stage.level])
            for room, options in zip(problem.rooms, problem.options, strict=True)
        ]
        self._prices = relax(problem, stage, [kind.options for kind in self._kinds], seconds)
        self.bound = self._prices.bound

    def promising(self, count: int) -> Problem:
        """The problem with only the best options of each kind, by what the first prices make of them."""
        kept: list[tuple[Option, ...]] = []
        for kind, mine in zip(self._kinds, self._prices.reduced, strict=True):
            order = sorted(range(len(mine)), key=lambda at: -mine[at])[:count]
            kept.append(tuple(kind.options[at] for at in sorted(order)))
        return replace(self._problem, options=tuple(kept))

    def plan(self, machines: list[int]) -> list[Filling]:
        """Fillings of machines (given by their kinds) at the best prices, the ones with most memory first."""
        left = dict(self._stage.left)
        fillings: list[Filling] = [() for _ in machines]
        order = sorted(range(len(machines)), key=lambda at: (-sum(self._problem.rooms[machines[at]][1:]), at))
        for at in order:
            kind = self._kinds[machines[at]]
            gains = self._gains(kind, self._prices)
            for number, option in enumerate(kind.options):
                if any(left.get(limit, 1) < 1 for limit in counts_towards(self._problem, option)):
                    gains[number] = 0.0
            fillings[at] = kind.filling(gains)
            for option in fillings[at]:
                for limit in counts_towards(self._problem, option):
                    if limit in left:
                        left[limit] -= 1
        return fillings

    def _gains(self, kind: PricedMachine, prices: Relaxed) -> Numbers:
        return numpy.array([self._gain(option, prices.limits, prices.earlier) for option in kind.options])

    def _gain(self, option: Option, limits: Mapping[Limit, float], earlier: list[float]) -> float:
        paid = sum(limits.get(limit, 0.0) for limit in counts_towards(self._problem, option))
        brings = 1.0 if option.level == self._stage.level else earlier[option.level]
        return brings * option.choice.worth - paid
