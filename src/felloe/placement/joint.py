"""Several machines searched together, every option at once: exact, for as many machines as a solver can overlook."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from felloe.placement.linear import Program
from felloe.placement.packing import Filling, Option, Problem, counts_towards


class Found(NamedTuple):
    """What each of the machines should hold (None: nothing was found in time), what that is worth, and the bound."""

    fillings: list[Filling] | None
    value: float
    bound: float


class Stage(NamedTuple):
    """What is searched now: `level` gets the most, while each earlier one keeps at least what `least` has for it.

    `left` is how many replicas the machines at hand may have, by limit.
    """

    level: int
    least: Sequence[float]
    left: Mapping[tuple[int, bool], int]


def solve_jointly(
    problem: Problem,
    machines: Sequence[int],
    stage: Stage,
    *,
    seconds: float,
    gap: float = 0.0,
    start: Sequence[Filling] = (),
) -> Found:
    """The best fillings of these machines, given by their kinds."""
    program = Program()
    limits = {limit: program.row(most=left) for limit, left in stage.left.items()}
    earlier = [program.row(least=least) for least in stage.least]
    columns: list[list[Option]] = []
    for kind in machines:
        options = [option for option in problem.options[kind] if option.level <= stage.level]

        def entries(option: Option) -> tuple[float, list[tuple[int, float]]]:
            rows = [(limits[limit], 1.0) for limit in counts_towards(problem, option) if limit in limits]
            if option.level < stage.level:
                return 0.0, [*rows, (earlier[option.level], option.choice.worth)]
            return option.choice.worth, rows

        add_machine(program, problem.rooms[kind], options, entries)
        columns.append(options)
    taken = [float(option in filling) for options, filling in zip(columns, start, strict=False) for option in options]
    solved = program.solve_whole(seconds=seconds, gap=gap, start=taken)
    if not solved.columns:
        return Found(None, 0.0, solved.bound)
    values = iter(solved.columns)
    fillings = [tuple(option for option in options if next(values) > 0) for options in columns]
    return Found(fillings, solved.value, solved.bound)


def add_machine(
    program: Program,
    room: Sequence[int],
    options: Sequence[Option],
    entries: Callable[[Option], tuple[float, list[tuple[int, float]]]],
) -> None:
    """Columns for one machine: no device holds more than its room, and no model is there twice."""
    devices = [program.row(most=size) for size in room]
    once: dict[int, int] = {}
    for option in options:
        wish = option.choice.wish
        if wish not in once:
            once[wish] = program.row(most=1)
        worth, rows = entries(option)
        used = [(devices[row], float(size)) for row, size in option.uses]
        program.column(worth, [*used, (once[wish], 1.0), *rows])
