"""What the commands about approvals and curators ask the node, and how they show what it answers."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from felloe.cli.client import OperatorClient
from felloe.cli.main import create_app
from felloe.cli.output import EXIT_REFUSED, exit_code
from felloe.console.catalog_messages import (
    CatalogEntry,
    CatalogRow,
    CatalogView,
    CuratorKey,
    CuratorRequest,
    CuratorRow,
    CuratorsView,
    Decided,
    DecideRequest,
    DecisionRow,
    FileRow,
)
from felloe.console.messages import NameRequest
from felloe.domain.errors import FelloeError
from felloe.node.home import Home

ROWS = (
    CatalogRow(content="a" * 64, name="kept", standing="approved", size=4_000_000, approved_by=("anna", "bob")),
    CatalogRow(
        content="b" * 64, name="new", standing="waiting", wanted=2, approved_by=("anna",), waits_for=("bob", "eve")
    ),
    CatalogRow(content="c" * 64, name="old", standing="withdrawn", reason="it leaks"),
    CatalogRow(content="d" * 64, name="odd", standing="rejected", rejected_by=("bob",)),
    CatalogRow(content="e" * 64, name="leaving", standing="approved", approved_by=("anna",), rejected_by=("bob",)),
)
ENTRY = CatalogEntry(
    row=ROWS[1],
    files=(FileRow("model.gguf", 4_000_000, "blake3:" + "0" * 64, "model"),),
    source="hf:owner/repo",
    revision="main",
    licence="MIT\n" + "line\n" * 40,
    template="\x1b[31mred",
    context=2048,
    parameters=1,
    capabilities=("chat",),
    made_at=0.0,
)
CURATORS = CuratorsView(
    curators=(CuratorRow(name="anna", key="1" * 64, this=True), CuratorRow(name="bob", key="2" * 64, this=False)),
    threshold=2,
    waiting=("anna (1 of 2): add eve (333333333333)",),
)
LOG = [DecisionRow(at=1.0, curator="anna", verdict="add_curator", about="bob", reason="a second pair of eyes")]


@pytest.fixture(autouse=True)
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the commands told the node."""
    monkeypatch.setenv("FELLOE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    Home(tmp_path).prepare()
    told: list[Any] = []
    answers: dict[Any, Any] = {
        CatalogRow: ROWS[1],
        CatalogEntry: ENTRY,
        Decided: Decided(sentence="noted, 1 of 2; waits for bob", done=False),
        CuratorKey: CuratorKey("curator:anna:" + "1" * 64),
        CatalogView: CatalogView(rows=ROWS, threshold=2, expires_at=9.0, notes=("bob's node has to sign",)),
        CuratorsView: CURATORS,
        list[DecisionRow]: LOG,
    }

    def tell(_: OperatorClient, path: str, message: object, kind: object) -> object:
        told.append((path, message))
        return answers[kind]

    monkeypatch.setattr(OperatorClient, "tell", tell)
    monkeypatch.setattr(OperatorClient, "ask", lambda _, path, kind: answers[kind])
    return told


def run(*arguments: str) -> Result:
    return CliRunner().invoke(create_app(), list(arguments))


@pytest.mark.parametrize(
    ("arguments", "path", "message"),
    [
        (("publish", "new"), "/catalog/publish", NameRequest("new")),
        (("approve", "new", "--reason", "fine"), "/catalog/decide", DecideRequest("approve", "new", "fine")),
        (("reject", "new"), "/catalog/decide", DecideRequest("reject", "new")),
        (("withdraw", "kept", "--reason", "bad"), "/catalog/decide", DecideRequest("withdraw", "kept", "bad")),
        (("catalog", "show", "new"), "/catalog/show", NameRequest("new")),
        (("curators", "key", "--name", "anna"), "/curators/key", NameRequest("anna")),
        (("curators", "add", "curator:x:00"), "/curators/change", CuratorRequest("add_curator", "curator:x:00")),
        (("curators", "remove", "bob"), "/curators/change", CuratorRequest("remove_curator", "bob")),
        (("curators", "threshold", "2"), "/curators/change", CuratorRequest("set_threshold", threshold=2)),
    ],
)
def test_a_command_asks_the_node_and_can_tell_programs(
    told: list[Any], arguments: tuple[str, ...], path: str, message: object
) -> None:
    assert run(*arguments).exit_code == 0
    assert isinstance(json.loads(run(*arguments, "--json").stdout), dict)
    assert told == [(path, message)] * 2


def test_a_withdrawal_needs_a_reason(told: list[Any]) -> None:
    assert run("withdraw", "kept").exit_code == 2
    assert told == []


def test_the_list_says_who_approved_and_who_is_waited_for() -> None:
    shown = run("catalog", "list")
    for standing in (
        "approved by anna, bob",
        "waiting 1 of 2 (bob, eve)",
        "withdrawn: it leaks",
        "rejected by bob",
        "approved by anna; bob: withdraw",
    ):
        assert standing in shown.stdout
    assert "bob's node has to sign" in shown.stderr
    assert json.loads(run("catalog", "list", "--json").stdout)["threshold"] == 2


def test_a_long_licence_is_cut_and_a_template_moves_no_cursor() -> None:
    shown = run("catalog", "show", "new").stdout
    assert "more lines with --json" in shown
    assert "\x1b" not in shown
    assert "?[31mred" in shown
    assert "model.gguf  4.0 MB  model" in shown


def test_a_decision_that_waits_for_others_says_so() -> None:
    assert run("approve", "new").stdout == "noted, 1 of 2; waits for bob\n"


def test_curators_are_listed_with_what_waits() -> None:
    shown = run("curators", "list").stdout
    assert "anna *" in shown
    assert "2 of 2 must agree" in shown
    assert "add eve" in shown
    assert run("curators", "key").stdout.startswith("curator:anna:")


def test_the_log_tells_who_decided_what() -> None:
    shown = run("catalog", "log").stdout
    for word in ("anna", "add curator", "bob", "a second pair of eyes"):
        assert word in shown


@pytest.mark.parametrize("code", ["not_approved", "model_withdrawn", "not_curator"])
def test_what_curators_forbid_is_refused(code: str) -> None:
    assert exit_code(FelloeError(code, "no")) == EXIT_REFUSED
