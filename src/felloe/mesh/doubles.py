"""Tells when somebody else runs with a copy of this node's home: it says records of this very id, under another run.

An echo of this node's own earlier run is no such thing: it was issued before this run started, and nobody issues it
anew. So the other must be heard twice, with two records that are younger than this run.
"""

from typing import NamedTuple

from felloe.domain.roster import NodeRecord

ENOUGH = 2
_MOST_RUNS = 8


class _Run(NamedTuple):
    newest: float
    records: int


class Doubles:
    """Which other runs of this node's id are heard. `started_at` in Unix seconds is this run's."""

    def __init__(self, started_at: float) -> None:
        self._started_at = started_at
        self._runs: dict[float, _Run] = {}

    def hear(self, record: NodeRecord) -> int:
        """How many records younger than this run another run has issued, with this one under this node's own id.

        0 for what is no news; from `ENOUGH` on it is certain that the other run lives.
        """
        if record.started_at == self._started_at or record.issued_at <= self._started_at:
            return 0
        run = self._runs.get(record.started_at)
        if run is None and len(self._runs) >= _MOST_RUNS:
            return 0
        if run is not None and record.issued_at <= run.newest:
            return 0
        count = 1 if run is None else run.records + 1
        self._runs[record.started_at] = _Run(record.issued_at, count)
        return count
