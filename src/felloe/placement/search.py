"""The search for the best plan: level by level, greedy first, then exact, as long as time allows."""

from collections.abc import Callable
from typing import NamedTuple

from felloe.placement.auction import Auction
from felloe.placement.greedy import Machines
from felloe.placement.joint import Stage, solve_jointly
from felloe.placement.mending import Mending
from felloe.placement.packing import Filling, Problem, limits_of, worth

_JOINT_OPTIONS = 1500
"""So many options may be searched all at once; more are searched by prices only."""

_JOINT_SECONDS = 0.5
_RELAX_SHARE = 0.5
_BID_SHARE = 0.7
_MOST_BIDS = 8
_FEW_BIDS = 3
_MOST_VAIN = 200
_ENOUGH = 1e-6
_GOOD_GAP = 0.003
_FAIR_GAP = 0.01
"""Of the bound: so near to it a plan is not worth seconds of search any more, of many machines and of few."""

_SLACK = 1e-7


class Searched(NamedTuple):
    """What each machine holds, kind by kind; what that is worth, and the most it could be."""

    fillings: list[Filling]
    value: float
    bound: float


def search(problem: Problem, *, until: float, now: Callable[[], float]) -> Searched:
    """The best plan that is found until then, with the bound that was proved."""
    machines = Machines(problem)
    fillings = machines.fillings()
    achieved: list[float] = []
    value = bound = 0.0
    for level in range(len(problem.levels)):
        remaining = max(0.0, until - now())
        share = now() + remaining / (len(problem.levels) - level)
        stage = _LevelSearch(problem, machines, level, achieved, now)
        fillings, proved = stage.run(fillings, share)
        reached = worth(fillings, level)
        achieved.append(reached - _SLACK * max(1.0, reached))
        value += reached
        bound += max(proved, reached)
    return Searched(fillings, value, bound)


class _LevelSearch:
    """One level, while the earlier ones keep what they have."""

    def __init__(
        self, problem: Problem, machines: Machines, level: int, achieved: list[float], now: Callable[[], float]
    ) -> None:
        self._problem = problem
        self._machines = machines
        self._now = now
        self._kinds = [at for at, kind in enumerate(problem.kinds) for _ in kind.machines]
        limits = {limit: left for limit, left in limits_of(problem).items() if self._counts(limit, level)}
        self._stage = Stage(level, tuple(achieved), limits)

    def run(self, fillings: list[Filling], until: float) -> tuple[list[Filling], float]:
        """The best fillings found, and the bound of this level."""
        fillings = self._filled(fillings)
        bound = self._plain_bound()
        if self._is_enough(fillings, bound) or self._now() >= until:
            return fillings, bound
        fillings = self._better(fillings, self._stayed())
        small = self._problem.size <= _JOINT_OPTIONS
        fillings, bound, mending = self._by_prices(fillings, bound, until, _FEW_BIDS if small else _MOST_BIDS)
        if not small:
            return self._mended(fillings, mending, bound, until), bound
        if not self._is_enough(fillings, bound):
            fillings, bound = self._jointly(fillings, bound, min(until, self._now() + _JOINT_SECONDS))
        if not self._is_enough(fillings, bound, _FAIR_GAP):
            fillings = self._mended(fillings, mending, bound, until)
            fillings, bound = self._jointly(fillings, bound, until)
        return fillings, bound

    def _counts(self, limit: tuple[int, bool], level: int) -> bool:
        """Whether any option up to this level takes from the limit."""
        wish = self._problem.wishes[limit[0]].desired.priority
        return any(
            at.priority == wish and (at.beyond == limit[1] or limit[1]) for at in self._problem.levels[: level + 1]
        )

    def _value(self, fillings: list[Filling]) -> float:
        return worth(fillings, self._stage.level)

    def _is_enough(self, fillings: list[Filling], bound: float, gap: float = _ENOUGH) -> bool:
        return self._value(fillings) >= bound * (1 - gap) - _SLACK

    def _stayed(self) -> list[Filling]:
        """What runs now, as far as it may stay."""
        self._machines.load([])
        self._machines.stay(self._stage.level + 1)
        return self._machines.fillings()

    def _filled(self, fillings: list[Filling]) -> list[Filling]:
        self._machines.load(fillings)
        self._machines.fill(self._stage.level + 1)
        return self._machines.fillings()

    def _plain_bound(self) -> float:
        """Every wish at its best, as if memory were no matter."""
        best: dict[int, float] = {}
        for options in self._problem.options:
            for option in options:
                if option.level == self._stage.level:
                    wish = option.choice.wish
                    best[wish] = max(best.get(wish, 0.0), option.choice.worth)
        beyond = self._problem.levels[self._stage.level].beyond if self._problem.levels else False
        bound = 0.0
        for wish, most in best.items():
            wanted = self._problem.wishes[wish]
            bound += most * (wanted.most if beyond else wanted.least)
        return bound

    def _jointly(self, fillings: list[Filling], bound: float, until: float) -> tuple[list[Filling], float]:
        seconds = until - self._now()
        if seconds <= 0:
            return fillings, bound
        found = solve_jointly(self._problem, self._kinds, self._stage, seconds=seconds, gap=_ENOUGH, start=fillings)
        bound = min(bound, found.bound)
        if found.fillings is not None and found.value > self._value(fillings) + _SLACK:
            fillings = found.fillings
        return fillings, bound

    def _by_prices(
        self, fillings: list[Filling], bound: float, until: float, bids: int
    ) -> tuple[list[Filling], float, Mending]:
        began = self._now()
        span = until - began
        auction = Auction(self._problem, self._stage, _RELAX_SHARE * span, self._now)
        mending = Mending(self._stage, self._kinds, auction, self._now)
        for _ in range(bids):
            planned = auction.plan(self._kinds, until)
            fillings = self._better(fillings, mending.run(self._filled(planned), until))
            bound = min(bound, auction.bound)
            if self._is_enough(fillings, bound, _GOOD_GAP) or self._now() >= began + _BID_SHARE * span:
                break
            auction.bid(self._value(fillings), until)
            bound = min(bound, auction.bound)
        return fillings, bound, mending

    def _better(self, fillings: list[Filling], offered: list[Filling]) -> list[Filling]:
        """What is offered, filled up, where it is worth more."""
        offered = self._filled(offered)
        if self._keeps(offered) and self._value(offered) > self._value(fillings) + _SLACK:
            return offered
        return fillings

    def _keeps(self, fillings: list[Filling]) -> bool:
        return all(worth(fillings, level) >= least for level, least in enumerate(self._stage.least))

    def _mended(self, fillings: list[Filling], mending: Mending, bound: float, until: float) -> list[Filling]:
        vain = 0
        while self._now() < until and vain < _MOST_VAIN and not self._is_enough(fillings, bound, _GOOD_GAP):
            vain = 0 if mending.again(fillings) else vain + 1
        return fillings
