"""What `felloe drain` and `felloe ps` say, by what the node tells them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from felloe.cli.client import OperatorClient
from felloe.cli.main import create_app
from felloe.console.messages import DrainRequest, DrainStep, MemberRow, PullRow, Status
from felloe.console.serving_messages import ServingRow, ServingView
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName
from felloe.domain.plan import DesiredModel
from felloe.domain.roster import Load, LoadingReplica
from felloe.host.files import HomeLock
from felloe.node.home import Home
from routing_fakes import make_member, make_replica, node_id


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("FELLOE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    prepared = Home(tmp_path)
    prepared.prepare()
    return prepared


@pytest.fixture
def asked(home: Home, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command told the node, which drains with two answers and a model of its own."""
    told: list[Any] = []

    def follow(_: OperatorClient, path: str, message: object, kind: object) -> Iterator[DrainStep]:
        told.append((path, message))
        yield DrainStep(running=2, only_here=("tiny-python",))
        yield DrainStep(running=1, only_here=("tiny-python",))
        yield DrainStep(only_here=("tiny-python",), ended=True)

    monkeypatch.setattr(OperatorClient, "follow", follow)
    return told


def answer(
    monkeypatch: pytest.MonkeyPatch, *rows: MemberRow, alone_since: float = 0.0, wanted: tuple[ServingRow, ...] = ()
) -> None:
    """Have the node show these members, and these wanted models."""
    status = Status(
        node="n",
        name="n",
        network="x",
        roles=("spoke",),
        version="0",
        base_url="",
        connected=not alone_since,
        hubs=(),
        home="",
        process=1,
        started_at=0,
        key_required=False,
        credential_expires_at=0,
        alone_since=alone_since,
    )
    answers: dict[str, object] = {"/status": status, "/members": list(rows), "/serving": ServingView(rows=wanted)}
    monkeypatch.setattr(OperatorClient, "ask", lambda _, path, kind: answers[path])


def test_a_drain_says_what_it_waits_for(asked: list[Any]) -> None:
    done = CliRunner().invoke(create_app(), ["drain", "--timeout", "7"])
    assert done.exit_code == 0
    assert asked == [("/drain", DrainRequest("", 7.0))]
    assert "waiting for 2 running answers" in done.stderr
    assert "waiting for 1 running answer\n" in done.stderr
    assert done.stderr.count("no other node serves tiny-python") == 1
    assert done.stdout == "drained and stopped\n"


def test_a_drain_returns_only_when_the_home_is_free(
    asked: list[Any], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("felloe.node.departure._STOP_SECONDS", 0.0)
    with HomeLock(home.lock):
        held = CliRunner().invoke(create_app(), ["drain"])
    assert isinstance(held.exception, FelloeError)
    assert held.exception.code == "home_in_use"
    assert CliRunner().invoke(create_app(), ["drain"]).exit_code == 0


def test_the_drain_of_another_node_does_not_wait_for_this_home(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("felloe.node.departure._STOP_SECONDS", 0.0)
    steps = [DrainStep(running=1, node="attic"), DrainStep(ended=True, node="attic")]
    monkeypatch.setattr(OperatorClient, "follow", lambda *_: iter(steps))
    with HomeLock(home.lock):
        done = CliRunner().invoke(create_app(), ["drain", "attic"])
    assert (done.exit_code, done.stdout) == (0, "attic: drained and stopped\n")


def test_a_node_of_a_version_too_far_away_is_shown_with_a_note(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make_member(node_id(1), make_replica(), version="0.9.0").record
    row = MemberRow(record=record, load=Load(), alive=True, this=False, silent_seconds=0, note="version 0.9.0: too new")
    answer(monkeypatch, row)
    shown = CliRunner().invoke(create_app(), ["ps"])
    assert shown.exit_code == 0
    assert "version 0.9.0: too new" in shown.stdout


def test_the_leading_hub_and_engines_in_trouble_are_shown(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    record = replace(make_member(node_id(1), make_replica(state="failed")).record, name="attic", roles=("hub",))
    answer(
        monkeypatch,
        MemberRow(
            record=record,
            load=Load(),
            alive=True,
            this=True,
            silent_seconds=0,
            leads=True,
            problems={"tiny-python": "in quarantine: it ended its engine 3 times [bold]"},
        ),
    )
    shown = CliRunner().invoke(create_app(), ["ps"])
    assert "hub (leads)" in shown.stdout
    assert "attic: tiny-python: in quarantine: it ended its engine 3 times [bold]" in shown.stdout
    assert "no hub" not in shown.stdout


def test_a_node_without_a_hub_says_that_it_is_alone(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make_member(node_id(1)).record
    answer(
        monkeypatch,
        MemberRow(record=record, load=Load(), alive=True, this=True, silent_seconds=0),
        alone_since=1_800_000_000.0,
    )
    shown = CliRunner().invoke(create_app(), ["ps"])
    assert "no hub: serving this machine only since 2027-01-1" in shown.stdout


def test_ps_shows_how_far_running_pulls_are(monkeypatch: pytest.MonkeyPatch, home: Home) -> None:
    member = make_member(node_id(1), make_replica())
    pulls = (
        PullRow(reference="hf:owner/repo", file="m.gguf", done=10**9, total=4 * 10**9, rate=10**7, eta=300),
        PullRow(reference="ollama:x:1", note="the server asks to wait"),
    )
    row = MemberRow(record=member.record, load=Load(), alive=True, this=True, silent_seconds=0, pulls=pulls)
    answer(monkeypatch, row)
    shown = CliRunner().invoke(create_app(), ["ps"]).stdout
    assert "pulls hf:owner/repo: m.gguf 1.0 GB of 4.0 GB, 10.0 MB/s, 5:00 left" in shown
    assert "pulls ollama:x:1: 0 B, the server asks to wait" in shown


def test_ps_shows_models_that_are_being_loaded_with_the_time_left(monkeypatch: pytest.MonkeyPatch, home: Home) -> None:
    large, small = ModelName("large"), ModelName("large-q4")
    loading = (
        LoadingReplica(model=large, variant=small, stage="fetching", done=10**9, total=4 * 10**9, ready_in=65.4),
        LoadingReplica(model=large, variant=large, stage="starting"),
        LoadingReplica(model=large, variant=large, stage="waiting", ready_in=7300),
    )
    record = replace(make_member(node_id(1), make_replica(speed=42.0)).record, name="attic", loading=loading)
    answer(monkeypatch, MemberRow(record=record, load=Load(), alive=True, this=True, silent_seconds=0))
    shown = CliRunner().invoke(create_app(), ["ps"]).stdout
    assert "attic: loads large as large-q4: comes 1.0 GB of 4.0 GB, 1:05 left" in shown
    assert "attic: loads large: starts\n" in shown
    assert "attic: loads large: waits for memory, 2:01:40 left" in shown
    assert "tiny-python (42 tokens/s)" in shown


def test_ps_shows_wanted_models_that_run_nowhere(monkeypatch: pytest.MonkeyPatch, home: Home) -> None:
    wanted = tuple(
        ServingRow(
            desired=DesiredModel(model=ModelName(name)), state=state, ready=0, note="2.1 GB short on attic [red]"
        )
        for name, state in (("asleep", "cold"), ("too-large", "refused"), ("new", "waiting"), ("fine", "ready"))
    )
    row = MemberRow(record=make_member(node_id(1)).record, load=Load(), alive=True, this=True, silent_seconds=0)
    answer(monkeypatch, row, wanted=wanted)
    shown = CliRunner().invoke(create_app(), ["ps"]).stdout
    assert "asleep: cold, the next request loads it\n" in shown
    assert "too-large: does not fit: 2.1 GB short on attic [red]\n" in shown
    assert "new: wanted, the leading hub plans it\n" in shown
    assert "fine" not in shown
