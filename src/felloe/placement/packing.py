"""Which choices go together on which machines: what is searched, whichever way it is searched.

Memory is counted in whole MiB, needs rounded up and devices down, so that a solver's tolerance never hides a byte.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct

from felloe.domain.fleet import RAM
from felloe.placement.choices import Choice
from felloe.placement.machine_kinds import MachineKind
from felloe.placement.wishes import Wish

_MIB = 2**20


class Level(NamedTuple):
    """What is served before all later levels: the minima of one priority, or the replicas beyond them."""

    priority: int
    beyond: bool


class Option(Struct, frozen=True, kw_only=True):
    """A choice of one machine kind, taken to fulfil its wish at a level.

    `uses` has the kind's rows and MiB: one row a device, of which the first is the machine's memory.
    """

    choice: Choice
    level: int
    uses: tuple[tuple[int, int], ...]


class Problem(Struct, frozen=True, kw_only=True):
    """Kinds of machines, their rooms in MiB by device, their options, and the levels, the first one first."""

    wishes: tuple[Wish, ...]
    levels: tuple[Level, ...]
    kinds: tuple[MachineKind, ...]
    rooms: tuple[tuple[int, ...], ...]
    options: tuple[tuple[Option, ...], ...]

    @property
    def size(self) -> int:
        """Options on all machines."""
        return sum(len(options) * len(kind.machines) for options, kind in zip(self.options, self.kinds, strict=True))


Limit = tuple[int, bool]
"""A wish's number, and which limit of it: False for its minimum, True for all its replicas."""

Filling = tuple[Option, ...]
"""What one machine holds."""


def problem_of(wishes: Sequence[Wish], kinds: Sequence[MachineKind], choices: Sequence[Sequence[Choice]]) -> Problem:
    """The problem with everything counted."""
    wanted = {Level(wish.desired.priority, False) for wish in wishes if wish.least}
    wanted |= {Level(wish.desired.priority, True) for wish in wishes if wish.most > wish.least}
    levels = sorted(wanted, key=lambda level: (level.beyond, -level.priority))
    number = {level: at for at, level in enumerate(levels)}
    options: list[tuple[Option, ...]] = []
    for kind, found in zip(kinds, choices, strict=True):
        mine: list[Option] = []
        known: dict[int, tuple[tuple[int, int], ...]] = {}
        for choice in found:
            wish = wishes[choice.wish]
            # Models of one shape have the very same parts, which are counted once.
            uses = known.get(id(choice.parts))
            if uses is None:
                uses = known[id(choice.parts)] = _uses(kind, choice)
            mine += [
                Option(choice=choice, level=number[Level(wish.desired.priority, beyond)], uses=uses)
                for beyond in (False, True)
                if (wish.most > wish.least if beyond else wish.least)
            ]
        options.append(tuple(mine))
    rooms = tuple(tuple(device.memory // _MIB for device in kind.devices) for kind in kinds)
    return Problem(wishes=tuple(wishes), levels=tuple(levels), kinds=tuple(kinds), rooms=rooms, options=tuple(options))


def limits_of(problem: Problem) -> dict[tuple[int, bool], int]:
    """How many replicas a wish may have: at its minimum's level (False), and on all levels together (True)."""
    limits: dict[tuple[int, bool], int] = {}
    for at, wish in enumerate(problem.wishes):
        if wish.least:
            limits[at, False] = wish.least
        if wish.most > wish.least:
            limits[at, True] = wish.most
    return limits


def counts_towards(problem: Problem, option: Option) -> tuple[tuple[int, bool], ...]:
    """Which of the limits an option takes one of."""
    wish = problem.wishes[option.choice.wish]
    minimum = () if problem.levels[option.level].beyond else ((option.choice.wish, False),)
    return (*minimum, (option.choice.wish, True)) if wish.most > wish.least else minimum


def worth(fillings: Iterable[Filling], level: int) -> float:
    """What fillings are worth at one level."""
    return sum(option.choice.worth for filling in fillings for option in filling if option.level == level)


def _uses(kind: MachineKind, choice: Choice) -> tuple[tuple[int, int], ...]:
    rows = {device.id: at for at, device in enumerate(kind.devices)}
    used: dict[int, int] = {}
    for part in choice.parts:
        row = rows[part.device]
        mebibytes = -(-part.need.total // _MIB)
        used[row] = used.get(row, 0) + mebibytes
        if kind.devices[row].shared and part.device != RAM:
            used[0] = used.get(0, 0) + mebibytes
    return tuple(sorted(used.items()))
