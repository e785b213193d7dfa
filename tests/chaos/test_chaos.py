"""Three minutes of faults, as `make chaos` runs them for half an hour."""

from pathlib import Path

import pytest

from chaos.run import Plan, run_chaos

SECONDS = 180.0


@pytest.mark.slow
async def test_three_minutes_of_faults_break_nothing(tmp_path: Path) -> None:
    result = await run_chaos(Plan(seconds=SECONDS, seed=20, nodes=4), tmp_path, print)
    print(result.report)
    assert result.records.happenings, "no fault came in time"
    assert not result.violations, result.report
