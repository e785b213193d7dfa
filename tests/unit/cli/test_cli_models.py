"""What `felloe models` and its subcommands ask and say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner, Result

from felloe.cli.client import OperatorClient
from felloe.cli.main import create_app
from felloe.console.messages import NameRequest, Nothing
from felloe.console.model_messages import CleanedRow, DamagedRow, ModelRow, VerifiedRow, VerifyStep
from felloe.node.home import Home
from routing_fakes import make_replica

MODEL = make_replica().model
DAMAGED = VerifiedRow(name="broken", damaged=(DamagedRow("m.gguf", (0, 7)),), source="hf:owner/repo", loaded=True)
WHOLE = VerifiedRow(name="fine")


@pytest.fixture
def verified() -> list[VerifiedRow]:
    return [WHOLE]


@pytest.fixture(autouse=True)
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verified: list[VerifiedRow]) -> list[Any]:
    """What the commands told the node."""
    monkeypatch.setenv("FELLOE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    Home(tmp_path).prepare()
    told: list[Any] = []

    def tell(_: OperatorClient, path: str, message: object, kind: object) -> object:
        told.append((path, message))
        return CleanedRow(("old",), 4_000_000) if kind is CleanedRow else Nothing()

    def follow(_: OperatorClient, path: str, message: object, kind: object) -> Iterator[VerifyStep]:
        told.append((path, message))
        yield VerifyStep(done=1, total=2)
        yield VerifyStep(models=tuple(verified))

    def ask(_: OperatorClient, path: str, kind: object) -> list[ModelRow]:
        rows = ModelRow(model=MODEL, stored=True, replicas={"here": "ready", "there": "loading"})
        named = [("a", {}), ("b", {"pinned": True}), ("c", {"problem": "damaged"}), ("d", {"stored": False})]
        return [replace(rows, model=replace(MODEL, name=name), **changes) for name, changes in named]

    for name, method in (("tell", tell), ("follow", follow), ("ask", ask)):
        monkeypatch.setattr(OperatorClient, name, method)
    return told


def run(*arguments: str) -> Result:
    return CliRunner().invoke(create_app(), ["models", *arguments])


def test_the_list_says_what_is_here_pinned_and_damaged() -> None:
    rows = [line.split() for line in run().stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == ["a", "b", "c", "d"]
    assert [[word for word in ("yes", "pinned", "damaged", "no") if word in row] for row in rows] == [
        ["yes"],
        ["pinned"],
        ["damaged"],
        ["no"],
    ]
    assert "there (loading)" in run().stdout
    assert '"pinned": true' in run("--json").stdout


@pytest.mark.parametrize(
    ("arguments", "path", "said"),
    [
        (("--remove", "a"), "/models/remove", "removed: a"),
        (("remove", "a"), "/models/remove", "removed: a"),
        (("pin", "a"), "/models/pin", "pinned: a"),
        (("unpin", "a"), "/models/unpin", "unpinned: a"),
    ],
)
def test_a_command_about_one_model_tells_the_node(
    told: list[Any], arguments: tuple[str, ...], path: str, said: str
) -> None:
    assert run(*arguments).stdout.strip() == said
    assert told == [(path, NameRequest("a"))]


def test_clean_says_what_went() -> None:
    assert run("clean").stdout.splitlines() == ["removed: old", "freed: 4.0 MB"]
    assert '"freed": 4000000' in run("clean", "--json").stdout


def test_whole_models_verify_with_exit_code_0(told: list[Any]) -> None:
    result = run("verify")
    assert (result.exit_code, result.stdout.strip()) == (0, "whole: fine")
    assert told == [("/models/verify", NameRequest(""))]


@pytest.mark.parametrize("verified", [[WHOLE, DAMAGED]])
def test_damage_is_told_with_what_to_do_and_exit_code_1() -> None:
    result = run("verify", "broken")
    assert result.exit_code == 1
    for said in ("whole: fine", "broken  m.gguf  chunks 0, 7", "from hf:owner/repo", "felloe unload broken"):
        assert said in result.stdout
    assert '"bad_chunks"' in run("verify", "--json").stdout
