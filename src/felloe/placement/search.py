"""The search for the best plan: level by level, greedy first, then exact, as long as time allows."""

import random
from collections.abc import Callable
from typing import NamedTuple

from felloe.placement.auction import Auction
from felloe.placement.greedy import Machines
from felloe.placement.joint import Stage, solve_jointly
from felloe.placement.packing import Filling, Problem, counts_towards, limits_of, worth

_JOINT_OPTIONS = 3000
"""So many options are searched all at once; more are searched by prices."""

_MENDED_OPTIONS = 300
_PROMISING = 120
_MOST_VAIN = 200
_BOUND_SHARE = 0.6
_ENOUGH = 1e-6
_GOOD_GAP = 0.002
_SLACK = 1e-7


class Searched(NamedTuple):
    """What each machine holds, kind by kind; what that is worth, and the most it could be."""

    fillings: list[Filling]
    value: float
    bound: float


def search(problem: Problem, *, seconds: float, now: Callable[[], float]) -> Searched:
    """The best plan that is found within the time, with the bound that was proved."""
    began = now()
    machines = Machines(problem)
    fillings = machines.fillings()
    achieved: list[float] = []
    value = bound = 0.0
    for level in range(len(problem.levels)):
        remaining = max(0.0, began + seconds - now())
        until = now() + remaining / (len(problem.levels) - level)
        stage = _LevelSearch(problem, machines, level, achieved, now)
        fillings, proved = stage.run(fillings, until)
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
        if self._problem.size <= _JOINT_OPTIONS:
            return self._jointly(fillings, bound, until)
        return self._by_prices(fillings, bound, until)

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
        found = solve_jointly(self._problem, self._kinds, self._stage, seconds=seconds, gap=_ENOUGH, start=fillings)
        bound = min(bound, found.bound)
        if found.fillings is not None and found.value > self._value(fillings) + _SLACK:
            fillings = found.fillings
        return fillings, bound

    def _by_prices(self, fillings: list[Filling], bound: float, until: float) -> tuple[list[Filling], float]:
        span = until - self._now()
        auction = Auction(self._problem, self._stage, _BOUND_SHARE * span)
        bound = min(bound, auction.bound)
        fillings = self._better(fillings, auction.plan(self._kinds))
        return self._mended(fillings, auction.promising(_PROMISING), bound, until), bound

    def _better(self, fillings: list[Filling], offered: list[Filling]) -> list[Filling]:
        """What is offered, filled up, where it is worth more."""
        offered = self._filled(offered)
        if self._keeps(offered) and self._value(offered) > self._value(fillings) + _SLACK:
            return offered
        return fillings

    def _keeps(self, fillings: list[Filling]) -> bool:
        return all(worth(fillings, level) >= least for level, least in enumerate(self._stage.least))

    def _mended(self, fillings: list[Filling], promising: Problem, bound: float, until: float) -> list[Filling]:
        """Some machines at a time are searched together while the others stay as they are."""
        dice = random.Random(len(fillings))  # noqa: S311 - the same on every run, so that plans are
        vain = 0
        while self._now() < until and vain < _MOST_VAIN and not self._is_enough(fillings, bound, _GOOD_GAP):
            order = list(range(len(fillings)))
            dice.shuffle(order)
            chosen: list[int] = []
            size = 0
            for machine in order:
                size += len(promising.options[self._kinds[machine]])
                if chosen and size > _MENDED_OPTIONS:
                    break
                chosen.append(machine)
            better = self._mend(fillings, promising, chosen, min(0.5, until - self._now()))
            if better is None:
                vain += 1
                continue
            vain = 0
            for machine, filling in zip(chosen, better, strict=True):
                fillings[machine] = filling
        return fillings

    def _mend(
        self, fillings: list[Filling], promising: Problem, chosen: list[int], seconds: float
    ) -> list[Filling] | None:
        left = dict(self._stage.left)
        picked = set(chosen)
        others = [filling for at, filling in enumerate(fillings) if at not in picked]
        for filling in others:
            for option in filling:
                for limit in counts_towards(self._problem, option):
                    if limit in left:
                        left[limit] -= 1
        least = [most - worth(others, level) for level, most in enumerate(self._stage.least)]
        mine = [fillings[machine] for machine in chosen]
        stage = Stage(self._stage.level, least, left)
        kinds = [self._kinds[machine] for machine in chosen]
        found = solve_jointly(promising, kinds, stage, seconds=seconds, gap=1e-3, start=mine)
        if found.fillings is None or found.value <= worth(mine, self._stage.level) + _SLACK:
            return None
        return found.fillings
