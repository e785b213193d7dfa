"""What `felloe fit` says of a model before it is loaded."""

from pathlib import Path
from typing import Any

import pytest
from msgspec import json
from typer.testing import CliRunner, Result

from felloe.cli import fit as command
from felloe.cli.client import OperatorClient
from felloe.cli.fit import Fit
from felloe.cli.main import create_app
from felloe.console.hardware_messages import DeviceRow, HardwareView
from felloe.console.messages import NameRequest
from placement_shapes import GIB, eight

SHIPPED = Path(__file__).parents[3] / "models/tiny-python/tiny-python-q8_0.gguf"
FLEET = """
[[machine]]
name = "hub"
ram = "100GiB"
[[machine.gpu]]
memory = "11.4GiB"
count = 2
"""


def row(id: str, kind: str, gib: float, held: float = 0) -> DeviceRow:
    return DeviceRow(
        id=id, kind=kind, name="card", total=int(gib * GIB), others=0, models=int(gib * GIB), held=int(held * GIB)
    )


@pytest.fixture(autouse=True)
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked of the node; this machine has two cards of 12 GiB, one half full, and one that nothing can use."""
    monkeypatch.setenv("FELLOE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    devices = (row("ram", "cpu", 64), row("gpu0", "cuda", 11.4), row("gpu1", "cuda", 11.4, 6), row("gpu2", "", 24))
    view = HardwareView(name="hub", system="", architecture="", processor="", cores=8, devices=devices)
    monkeypatch.setattr(command, "current_hardware", lambda: view)
    told: list[Any] = []

    def tell(_: OperatorClient, path: str, message: object, kind: object) -> object:
        told.append((path, message, kind))
        return eight()

    monkeypatch.setattr(OperatorClient, "tell", tell)
    return told


def fit(*arguments: str) -> Result:
    return CliRunner().invoke(create_app(), ["fit", *arguments])


def found(*arguments: str) -> Fit:
    result = fit(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.decode(result.stdout, type=Fit)


def test_a_file_needs_no_node(told: list[Any]) -> None:
    result = fit(str(SHIPPED))
    assert result.exit_code == 0, result.output
    assert "llama Q8_0, 3.7 M parameters, 3.9 MB of weights in 4 layers, made for 4,096 tokens" in result.stdout
    assert told == []


def test_a_models_name_is_looked_up_by_the_node(told: list[Any]) -> None:
    assert found("llama-8b").shape == eight()
    assert told[0][:2] == ("/models/shape", NameRequest("llama-8b"))


def test_each_card_all_cards_and_memory_are_shown_without_what_is_held() -> None:
    rows = found("llama-8b").rows
    assert [each.devices for each in rows] == [("gpu0",), ("gpu1",), ("gpu0", "gpu1"), ("ram",)]
    assert rows[0].longest >= 8192
    assert rows[1].longest < rows[0].longest < rows[2].longest


def test_what_does_not_fit_says_how_much_is_short() -> None:
    cell = found("llama-8b", "--context", "65536").rows[0].cells[0]
    assert (cell.parts, cell.where) == ((), "gpu0")
    assert cell.short_bytes > 20 * GIB
    assert "with a minus: it does not fit" in fit("llama-8b").stdout


def test_settings_change_the_price() -> None:
    def cache(*options: str) -> int:
        return sum(part.need.kv for part in found("llama-8b", "--context", "4096", *options).rows[-1].cells[0].parts)

    assert cache("--slots", "2") * 2 == cache()
    assert cache("--kv-type", "q8_0") < 0.6 * cache()


def test_an_unknown_cache_type_is_refused() -> None:
    result = fit("llama-8b", "--kv-type", "q3")
    assert result.exit_code != 0


def test_layers_may_lie_in_memory_where_that_is_allowed() -> None:
    cell = found("llama-8b", "--context", "32768", "--offload").rows[0].cells[0]
    assert {part.device: part.layers > 0 for part in cell.parts} == {"ram": True, "gpu0": True}
