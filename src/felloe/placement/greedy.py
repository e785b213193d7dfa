"""A plan without search: each wish in turn takes the best place that is left. Found at once, and never far off."""

from collections.abc import Sequence

import numpy

from felloe.placement.packing import Filling, Option, Problem, counts_towards, limits_of

_RICHER = 1e-9


class Machines:
    """All machines of a problem one by one, what each holds and has left; filled greedily from any state on."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.kind_of = [at for at, kind in enumerate(problem.kinds) for _ in kind.machines]
        self._width = max((len(room) for room in problem.rooms), default=1)
        self._tables = self._all_tables()
        self.load([])

    def load(self, fillings: Sequence[Filling]) -> None:
        """Begin anew, with what each machine holds."""
        problem = self.problem
        self.held: list[list[Option]] = [[] for _ in self.kind_of]
        self._holds = numpy.zeros((len(problem.wishes), len(self.kind_of)), dtype=bool)
        self._left = dict(limits_of(problem))
        self._free = numpy.zeros((len(self.kind_of), self._width))
        for machine, kind in enumerate(self.kind_of):
            self._free[machine, : len(problem.rooms[kind])] = problem.rooms[kind]
        for machine, filling in enumerate(fillings):
            for option in filling:
                self.take(machine, option)

    def _all_tables(self) -> "dict[tuple[int, int], _Table]":
        """Every option on every machine, by wish and level."""
        rows: dict[tuple[int, int], list[tuple[int, Option]]] = {}
        for machine, kind in enumerate(self.kind_of):
            for option in self.problem.options[kind]:
                rows.setdefault((option.choice.wish, option.level), []).append((machine, option))
        return {key: _Table(mine, self._width) for key, mine in rows.items()}

    def take(self, machine: int, option: Option) -> None:
        """Put it there."""
        self.held[machine].append(option)
        self._holds[option.choice.wish, machine] = True
        for row, used in option.uses:
            self._free[machine, row] -= used
        for limit in counts_towards(self.problem, option):
            self._left[limit] -= 1

    def fill(self, levels: int) -> None:
        """Serve what is left of the first `levels` levels, whatever is worth most first."""
        for level in range(levels):
            wishes = [wish for wish in range(len(self.problem.wishes)) if (wish, level) in self._tables]
            wishes.sort(key=lambda wish: (-self.problem.wishes[wish].desired.demand, wish))
            for wish in wishes:
                self._serve(wish, level)

    def stay(self, levels: int) -> None:
        """Keep what runs now, as long as it is wanted."""
        for machine, kind in enumerate(self.kind_of):
            for option in self.problem.options[kind]:
                wish = option.choice.wish
                if not option.choice.stays or option.level >= levels or self._holds[wish, machine]:
                    continue
                fits = all(used <= self._free[machine, row] for row, used in option.uses)
                if fits and all(self._left[limit] > 0 for limit in counts_towards(self.problem, option)):
                    self.take(machine, option)

    def fillings(self) -> list[Filling]:
        """What each machine holds now."""
        return [tuple(held) for held in self.held]

    def _serve(self, wish: int, level: int) -> None:
        """As many replicas as may be, each on the machine that gives it the most worth, of equal ones the fullest.

        A replica changes nothing on other machines, so one look at them gives the order for all.
        """
        table = self._tables[wish, level]
        count = min(self._left[limit] for limit in counts_towards(self.problem, table.options[0]))
        if count < 1:
            return
        free = self._free[table.machines]
        fits = (table.uses <= free).all(axis=1) & ~self._holds[wish, table.machines]
        waste = numpy.where(table.uses > 0, free - table.uses, 0).sum(axis=1)
        rank = numpy.where(fits, table.worth - _RICHER * waste, -numpy.inf)
        for at in numpy.argsort(-rank, kind="stable")[: int(fits.sum())]:
            machine = int(table.machines[at])
            if self._holds[wish, machine]:
                continue
            self.take(machine, table.options[int(at)])
            count -= 1
            if count < 1:
                return


class _Table:
    """Options as arrays: which machine, what each is worth, and MiB by device."""

    def __init__(self, rows: Sequence[tuple[int, Option]], width: int) -> None:
        self.options = [option for _, option in rows]
        self.machines = numpy.array([machine for machine, _ in rows], dtype=int)
        self.worth = numpy.array([option.choice.worth for option in self.options])
        self.uses = numpy.zeros((len(rows), width))
        for at, option in enumerate(self.options):
            for row, used in option.uses:
                self.uses[at, row] = used
