"""The linear program that allows fractions of replicas: its worth is a bound of every plan, its duals are prices.

Machines of one kind are taken as one. Where there are many kinds, so are kinds that are much alike: then an option
needs no more than it does on any of them, and is there as often as on all of them, so that the bound stays a bound.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from felloe.placement.joint import Stage
from felloe.placement.linear import Program
from felloe.placement.packing import Limit, Option, Problem, counts_towards

_MANY_KINDS = 60
_STEPS_AN_OCTAVE = 3

_Key = tuple[int, str, int, int, bool, tuple[int, ...]]


class Relaxed(NamedTuple):
    """The bound, what each replica of a limit costs, what worth at earlier levels brings, and each option's gain.

    `reduced` has an entry a kind, with the stage's options in their order; `once` has what each wish pays
    there for being on a machine once only. Without a bound the time was too short.
    """

    bound: float
    limits: dict[Limit, float]
    earlier: list[float]
    reduced: list[list[float]]
    once: list[dict[int, float]]


class _Merged(NamedTuple):
    """One option on several kinds: the most it is worth, the least it uses, and on how many machines it is possible."""

    option: Option
    worth: float
    uses: tuple[tuple[int, int], ...]
    times: int


def relax(problem: Problem, stage: Stage, options: Sequence[Sequence[Option]], seconds: float) -> Relaxed:
    """Solve it for these options, by kind."""
    program = Program()
    limits = {limit: program.row(most=left) for limit, left in stage.left.items()}
    earlier = [program.row(least=least) for least in stage.least]
    columns: dict[tuple[int, _Key], int] = {}
    only: list[dict[int, int]] = []
    groups = _groups(problem)
    for number, kinds in enumerate(groups):
        width = max(len(problem.rooms[kind]) for kind in kinds)
        times = {kind: len(problem.kinds[kind].machines) for kind in kinds}
        devices = [
            program.row(most=float(sum(problem.rooms[kind][at] * times[kind] for kind in kinds))) for at in range(width)
        ]
        once: dict[int, int] = {}
        for key, merged in _merged(options, times).items():
            wish = merged.option.choice.wish
            if wish not in once:
                once[wish] = program.row(most=sum(times.values()))
            rows = [(devices[row], float(size)) for row, size in merged.uses]
            rows += [(limits[limit], 1.0) for limit in counts_towards(problem, merged.option) if limit in limits]
            rows.append((once[wish], 1.0))
            now = merged.option.level == stage.level
            if not now:
                rows.append((earlier[merged.option.level], merged.worth))
            columns[number, key] = program.column(merged.worth if now else 0.0, rows, most=float(merged.times))
        only.append(once)
    solved = program.solve_relaxed(seconds=seconds)
    if not solved.duals:
        nothing = [[0.0] * len(mine) for mine in options]
        return Relaxed(math.inf, dict.fromkeys(limits, 0.0), [1.0] * len(earlier), nothing, [{} for _ in options])
    group_of = {kind: number for number, kinds in enumerate(groups) for kind in kinds}
    return Relaxed(
        solved.value,
        {limit: max(0.0, solved.duals[row]) for limit, row in limits.items()},
        [max(0.0, -solved.duals[row]) for row in earlier],
        [
            [solved.reduced[columns[group_of[kind], _key(option)]] for option in mine]
            for kind, mine in enumerate(options)
        ],
        [
            {wish: max(0.0, solved.duals[row]) for wish, row in only[group_of[kind]].items()}
            for kind in range(len(options))
        ],
    )


def _groups(problem: Problem) -> list[list[int]]:
    """Kinds that are taken as one: each by itself, or where they are many, those with much the same devices."""
    if len(problem.kinds) <= _MANY_KINDS:
        return [[kind] for kind in range(len(problem.kinds))]
    groups: dict[tuple[tuple[str, bool, int], ...], list[int]] = {}
    for at, kind in enumerate(problem.kinds):
        alike = tuple(
            (device.kind, device.shared, round(math.log2(max(1, device.memory)) * _STEPS_AN_OCTAVE))
            for device in kind.devices[1:] or kind.devices
        )
        groups.setdefault(alike, []).append(at)
    return list(groups.values())


def _merged(options: Sequence[Sequence[Option]], times: Mapping[int, int]) -> dict[_Key, _Merged]:
    found: dict[_Key, _Merged] = {}
    for kind, count in times.items():
        for option in options[kind]:
            key = _key(option)
            known = found.get(key)
            if known is None:
                found[key] = _Merged(option, option.choice.worth, option.uses, count)
                continue
            uses = tuple(
                (row, min(size, other)) for (row, size), (_, other) in zip(known.uses, option.uses, strict=True)
            )
            found[key] = _Merged(known.option, max(known.worth, option.choice.worth), uses, known.times + count)
    return found


def _key(option: Option) -> _Key:
    choice = option.choice
    return choice.wish, choice.variant, choice.context, option.level, choice.stays, tuple(row for row, _ in option.uses)
