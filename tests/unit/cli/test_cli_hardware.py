"""What `felloe hardware` shows, with and without a node."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from felloe.cli.client import OperatorClient
from felloe.cli.main import create_app
from felloe.console.hardware_messages import DeviceRow, HardwareView, LinkRow
from felloe.domain.errors import FelloeError
from felloe.node.home import Home

GB = 10**9
VIEW = HardwareView(
    name="den",
    system="Linux",
    architecture="x86_64",
    processor="Xeon",
    cores=8,
    devices=(
        DeviceRow(id="ram", kind="cpu", name="Xeon", total=32 * GB, others=2 * GB, models=28 * GB, held=0),
        DeviceRow(
            id="gpu0",
            kind="cuda",
            name="[bold]RTX",
            total=12 * GB,
            others=GB,
            models=10 * GB,
            held=4 * GB,
            limit=10 * GB,
            bandwidth=936e9,
        ),
        DeviceRow(id="gpu1", kind="", name="Arc", total=8 * GB, others=0, models=0, held=0, shared=True),
    ),
    links=(LinkRow(node="b", name="spoke-a", round_trip_seconds=0.0123, bytes_per_second=0.0, measured_at=0.0),),
    notes=("something that matters",),
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("FELLOE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    prepared = Home(tmp_path)
    prepared.prepare()
    return prepared


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(create_app(), ["hardware", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.usefixtures("home")
def test_a_running_node_tells_of_its_machine_and_of_the_ways_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(_: OperatorClient, path: str, kind: Any) -> Any:
        assert (path, kind) == ("/hardware", HardwareView)
        return VIEW

    monkeypatch.setattr(OperatorClient, "ask", ask)
    lines = shown().splitlines()
    assert lines[0] == "den: Xeon, 8 cores, Linux x86_64"
    card = next(line for line in lines if line.startswith("gpu0"))
    assert all(part in card for part in ("[bold]RTX", "9.3 GiB (limit)", "936.0 GB/s"))
    assert "not usable" in next(line for line in lines if line.startswith("gpu1"))
    assert "12.3 ms" in next(line for line in lines if line.startswith("spoke-a"))
    assert lines[-1] == "note: something that matters"
    assert msgspec.json.decode(shown("--json"), type=HardwareView) == VIEW


def test_without_a_node_the_machine_is_looked_at_and_the_limits_hold(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(_: OperatorClient, path: str, kind: Any) -> Any:
        raise FelloeError("not_running", path)

    monkeypatch.setattr(OperatorClient, "ask", nobody)
    home.config.write_text('[hardware]\nram_limit = "1GB"\ngpu_memory_limit = "gpu63=1GB"')
    view = msgspec.json.decode(shown("--json"), type=HardwareView)
    assert (view.devices[0].id, view.devices[0].models, view.devices[0].limit) == ("ram", GB, GB)
    assert any("gpu63" in note for note in view.notes)
    assert "953 MiB (limit)" in shown()
