"""What `felloe plan` says on paper, with no node running."""

from pathlib import Path

import pytest
from msgspec import json
from typer.testing import CliRunner

from felloe.cli.client import OperatorClient
from felloe.cli.main import create_app
from felloe.console.serving_messages import PlanView
from felloe.domain.errors import FelloeError
from felloe.domain.fleet import Fleet
from felloe.domain.plan import Plan

ROOT = Path(__file__).parents[3]
FILES = ["--fleet", str(ROOT / "examples/fleet.toml"), "--models", str(ROOT / "examples/models.toml")]


def test_the_table_has_a_row_a_replica_and_a_line_a_refusal() -> None:
    result = CliRunner().invoke(create_app(), ["plan", *FILES], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "orchestrator-70b" in result.output
    assert "write-8b: not placed" in result.output
    assert "nearest: with offload it fits on spoke-a" in result.output
    assert "that is proved" in result.output


def test_json_is_the_plan_with_what_it_was_made_from() -> None:
    result = CliRunner().invoke(create_app(), ["plan", *FILES, "--json"])
    view = json.decode(result.stdout, type=PlanView)
    assert (len(view.fleet.machines), len(view.desired)) == (3, 7)
    assert {placement.model for placement in view.plan.placements} >= {"orchestrator-70b", "chat-8b", "edge-1b"}


def test_models_of_files_are_read_by_their_headers(tmp_path: Path) -> None:
    shipped = ROOT / "models/tiny-python/tiny-python-q8_0.gguf"
    (tmp_path / "tiny.gguf").symlink_to(shipped)
    models = tmp_path / "models.toml"
    models.write_text('[[model]]\nname = "tiny"\ngguf = ["tiny.gguf"]\npins = ["spoke-b"]\n')
    result = CliRunner().invoke(create_app(), ["plan", FILES[0], FILES[1], "--models", str(models), "--explain"])
    assert "tiny as tiny:tiny" in result.output, result.output


def test_a_network_that_wants_nothing_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> PlanView:
        return PlanView(plan=Plan(placements=()), fleet=Fleet(machines=()), desired=())

    monkeypatch.setattr(OperatorClient, "ask", ask)
    for options in ([], ["--explain"]):
        assert "Nothing is wanted" in CliRunner().invoke(create_app(), ["plan", *options]).output


def test_a_time_that_is_no_number_is_refused() -> None:
    result = CliRunner().invoke(create_app(), ["plan", *FILES, "--seconds", "nan"])
    assert isinstance(result.exception, FelloeError)


def test_one_file_alone_is_refused() -> None:
    result = CliRunner().invoke(create_app(), ["plan", *FILES[:2]])
    assert result.exit_code != 0
