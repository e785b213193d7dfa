"""Linear and whole-number programs, solved by HiGHS (https://highs.dev); the only place that knows the solver."""

from collections.abc import Sequence
from typing import Any

import highspy
import numpy
from msgspec import Struct

_WHOLE_TOLERANCE = 1e-5


class Solved(Struct, frozen=True, kw_only=True):
    """`columns` is empty when none was found in time. `bound` is the most that any solution could have.

    `duals` has what one more unit of each row's limit would be worth, `reduced` what one more of each column would;
    both are empty for whole-number programs.
    """

    value: float
    bound: float
    columns: list[float]
    duals: list[float]
    reduced: list[float]


class Program:
    """Maximises the columns' worth, each column at least 0, under rows with limits. Built once, solved often."""

    def __init__(self) -> None:
        self._worth: list[float] = []
        self._most: list[float] = []
        self._entries: list[Sequence[tuple[int, float]]] = []
        self._rows: list[tuple[float, float]] = []

    def row(self, *, least: float = float("-inf"), most: float = float("inf")) -> int:
        """A limit on a sum of columns; gives its number."""
        self._rows.append((least, most))
        return len(self._rows) - 1

    def column(self, worth: float, entries: Sequence[tuple[int, float]], *, most: float = 1.0) -> int:
        """Something to be taken up to `most` times; `entries` are rows and what one adds to each."""
        self._worth.append(worth)
        self._most.append(most)
        self._entries.append(entries)
        return len(self._worth) - 1

    @property
    def width(self) -> int:
        """How many columns it has."""
        return len(self._worth)

    def solve_whole(self, *, seconds: float, gap: float = 0.0, start: Sequence[float] = ()) -> Solved:
        """The best whole numbers, from `start` on; stops within `gap` of the best or after `seconds`."""
        solver = self._solver(seconds, whole=True)
        solver.setOptionValue("mip_rel_gap", gap)
        solver.setOptionValue("mip_abs_gap", 1e-7)
        if start:
            solution = highspy.HighsSolution()
            solution.col_value = list(start)
            solver.setSolution(solution)
        solver.run()
        info = solver.getInfo()
        found = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        columns = [float(round(value)) for value in solver.getSolution().col_value] if found else []
        done = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
        value = sum(worth * taken for worth, taken in zip(self._worth, columns, strict=False))
        bound = -float(info.mip_dual_bound)
        if done and not abs(bound) < highspy.kHighsInf:
            bound = value
        return Solved(value=value, bound=max(bound, value), columns=columns, duals=[], reduced=[])

    def solve_relaxed(self, *, seconds: float) -> Solved:
        """The best fractions, and what each row is worth."""
        solver = self._solver(seconds, whole=False)
        solver.run()
        solution = solver.getSolution()
        value = -float(solver.getInfo().objective_function_value)
        optimal = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
        columns = [float(taken) for taken in solution.col_value]
        duals = [-float(dual) for dual in solution.row_dual] if optimal else []
        reduced = [-float(cost) for cost in solution.col_dual] if optimal else []
        return Solved(value=value, bound=value, columns=columns, duals=duals, reduced=reduced)

    def _solver(self, seconds: float, *, whole: bool) -> Any:
        solver: Any = highspy.Highs()
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("threads", 1)
        solver.setOptionValue("random_seed", 1)
        solver.setOptionValue("time_limit", max(0.01, seconds))
        solver.setOptionValue("mip_feasibility_tolerance", 1e-7)
        model: Any = highspy.HighsLp()
        count = len(self._worth)
        model.num_col_, model.num_row_ = count, len(self._rows)
        model.col_cost_ = -numpy.array(self._worth, dtype=float)
        model.col_lower_ = numpy.zeros(count)
        model.col_upper_ = numpy.array(self._most, dtype=float)
        model.row_lower_ = numpy.array([least for least, _ in self._rows], dtype=float)
        model.row_upper_ = numpy.array([most for _, most in self._rows], dtype=float)
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        model.a_matrix_.start_ = numpy.cumsum([0, *(len(entries) for entries in self._entries)], dtype=numpy.int32)
        flat = [entry for entries in self._entries for entry in entries]
        model.a_matrix_.index_ = numpy.array([row for row, _ in flat], dtype=numpy.int32)
        model.a_matrix_.value_ = numpy.array([value for _, value in flat], dtype=float)
        if whole:
            model.integrality_ = [highspy.HighsVarType.kInteger] * count
        solver.passModel(model)
        return solver
