"""What `felloe serve` and `felloe retire` ask of the node, and what they show."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from felloe.cli.client import OperatorClient
from felloe.cli.main import create_app
from felloe.cli.serve import span
from felloe.console.messages import NameRequest, Nothing
from felloe.console.serving_messages import Declared, ServingPlace, ServingRow, ServingView
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName
from felloe.domain.plan import DesiredModel

CHAT = ModelName("chat")


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the commands told the node, which has something to say to each wish."""
    monkeypatch.setenv("FELLOE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    messages: list[Any] = []

    def tell(_: OperatorClient, path: str, message: Any, kind: object) -> object:
        messages.append((path, message))
        return Nothing() if kind is Nothing else Declared(desired=message, notes=("not approved yet",))

    monkeypatch.setattr(OperatorClient, "tell", tell)
    return messages


def run(*arguments: str) -> tuple[str, str]:
    done = CliRunner().invoke(create_app(), arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def test_one_word_is_enough(told: list[Any]) -> None:
    shown, noted = run("serve", "chat")
    assert told == [("/serving/declare", DesiredModel(model=CHAT, idle_seconds=600.0))]
    assert "chat: wanted, 1 copy;" in shown
    assert "not approved yet" in noted


def test_every_option_reaches_the_wish(told: list[Any]) -> None:
    options = "--replicas 1..3 --idle 30m --priority 5 --demand 2 --context 4096..16384 --slots 8 --kv q8_0 --offload"
    run("serve", "chat", *options.split(), "--variant", "q6", "--variant", "q4", "--pin", "hub/gpu0", "--pin", "attic")
    [(_, wish)] = told
    assert wish == DesiredModel(
        model=CHAT,
        variants=(ModelName("q6"), ModelName("q4")),
        replicas_min=1,
        replicas_max=3,
        priority=5,
        demand=2.0,
        context=16384,
        context_least=4096,
        slots=8,
        kv_type="q8_0",
        pins=("hub/gpu0", "attic"),
        offload=True,
        idle_seconds=1800.0,
    )


def test_several_models_get_the_same_wish_and_variants_belong_to_one(told: list[Any]) -> None:
    shown, _ = run("serve", "chat", "code", "--on-demand", "--replicas", "2")
    assert [(wish.model, wish.replicas_min, wish.replicas_max) for _, wish in told] == [("chat", 0, 2), ("code", 0, 2)]
    assert "on demand, up to 2" in shown
    with pytest.raises(FelloeError, match="variants belong to one model"):
        run("serve", "chat", "code", "--variant", "q4")


def test_retired_models_are_named(told: list[Any]) -> None:
    run("retire", "chat", "code")
    assert told == [("/serving/retire", NameRequest("chat")), ("/serving/retire", NameRequest("code"))]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--replicas", "many"),
        ("--context", "1..x"),
        ("--idle", "soon"),
        ("--kv", "f32"),
        ("--kv", ""),
        ("--replicas", "3..1"),
        ("--context", "4096..1024"),
        ("--demand", "nan"),
        ("--demand", "inf"),
        ("--slots", "0"),
        ("--pin", ""),
        ("--pin", "a//b"),
        ("--priority", "1001"),
        ("--idle", "999d"),
        ("--idle", "nan"),
        ("--replicas", "0"),
    ],
)
def test_what_means_nothing_is_refused_before_the_node_is_asked(told: list[Any], arguments: tuple[str, str]) -> None:
    with pytest.raises(FelloeError) as refused:
        run("serve", "chat", *arguments)
    assert refused.value.code == "invalid_value"
    assert told == []


def test_spans() -> None:
    assert (span("3"), span("1..3"), span("0..2")) == ((3, 3), (1, 3), (0, 2))


def rows(*_: object) -> ServingView:
    place = ServingPlace(node="attic", variant=ModelName("q4"), devices=("gpu0", "gpu1"), context=4096, ready=False)
    return ServingView(
        rows=(
            ServingRow(desired=DesiredModel(model=CHAT), state="loading", ready=0, places=(place,)),
            ServingRow(
                desired=DesiredModel(model=ModelName("huge"), replicas_min=0),
                state="refused",
                ready=0,
                note="huge lacks 17.8 GiB on attic",
            ),
        ),
        number=7,
    )


def nothing(*_: object) -> ServingView:
    return ServingView(rows=())


def test_what_an_owner_loaded_by_hand_is_told_apart(told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def owned(*_: object) -> ServingView:
        place = ServingPlace(node="attic", variant=CHAT, devices=(), context=4096, ready=True, by_owner=True)
        return ServingView(
            rows=(ServingRow(desired=DesiredModel(model=CHAT), state="ready", ready=1, places=(place,)),)
        )

    monkeypatch.setattr(OperatorClient, "ask", owned)
    assert "attic (loaded by its owner)" in run("serve", "--list")[0]


def test_the_list_says_where_and_why_not(told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OperatorClient, "ask", rows)
    shown, _ = run("serve", "--list")
    lines = shown.splitlines()
    assert "attic (gpu0, gpu1; loading)" in lines[1]
    assert lines[2].split()[:2] == ["huge", "refused"]
    assert "huge: huge lacks 17.8 GiB on attic" in shown
    assert "plan 7" in shown
    read = msgspec.json.decode(run("serve", "--json")[0], type=ServingView)
    assert read == rows()
    monkeypatch.setattr(OperatorClient, "ask", nothing)
    assert "nothing is wanted" in run("serve")[0]
