"""What `felloe doctor` says about hubs."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from felloe.console.catalog_messages import CatalogView
from felloe.console.hub_messages import HubRow, HubsView
from felloe.domain.errors import FelloeError
from felloe.node import hub_checks
from felloe.node.config import NodeConfig, PeerConfig
from felloe.node.founding import found_network
from felloe.node.home import Home
from felloe.node.hub_checks import catalog_finding, clock_finding, hub_ports_finding, hubs_finding, root_finding
from felloe.node.network_files import NetworkFiles
from felloe.node.root_operations import EXPORT_NOTE, ExportNote
from networks import free_ports, free_run


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.prepare()
    return home


def config(**settings: Any) -> NodeConfig:
    peer, mesh, route = free_ports(3)
    given = {"port": peer, "mesh_port": mesh, "route_port": route, "state_port": free_run(2)} | settings
    return NodeConfig(peer=PeerConfig(**given))


def found(home: Home, config: NodeConfig | None = None) -> NetworkFiles:
    files = NetworkFiles(home)
    found_network(files, config or NodeConfig(), "first")
    return files


# The root


def test_a_root_that_is_nowhere_else_is_warned_of_until_it_was_exported(home: Home) -> None:
    assert root_finding(home).verdict == "ok"
    files = found(home)
    lonely = root_finding(home)
    assert (lonely.verdict, lonely.detail) == ("warning", "the network's root key lies only on this machine")
    assert "felloe root export" in lonely.next_step
    root = files.root()
    assert root is not None
    for pin, verdict in (("00", "warning"), (root.pin.hex(), "ok")):
        files.saver(EXPORT_NOTE)(f'{{"pin": "{pin}", "at": {time.time()}}}'.encode())
        assert root_finding(home).verdict == verdict
    files.saver(EXPORT_NOTE)(b"\xff{")
    assert root_finding(home).verdict == "warning"
    files.forget_root()
    assert root_finding(home).detail == "not on this machine"


def test_the_note_of_an_export_comes_back(home: Home) -> None:
    import msgspec

    found(home).saver(EXPORT_NOTE)(msgspec.json.encode(ExportNote("ab", 5.0)))
    assert hub_checks.export_note(NetworkFiles(home)) == ExportNote("ab", 5.0)


# The clock


def clock_of(monkeypatch: pytest.MonkeyPatch, tell: Callable[[], float]) -> None:
    async def ask_time(address: object, trust: object, *, now: Callable[[], float]) -> float:
        return tell()

    monkeypatch.setattr(hub_checks, "ask_time", ask_time)


@pytest.mark.parametrize(
    ("offset", "verdict", "word"),
    [(0.0, "ok", "within 30 s"), (-400.0, "warning", "ahead of"), (90.0, "warning", "behind")],
)
def test_a_clock_that_is_far_from_a_hubs_is_told(
    home: Home, monkeypatch: pytest.MonkeyPatch, offset: float, verdict: str, word: str
) -> None:
    settings = config(advertise=("10.0.0.9",))
    found(home)
    clock_of(monkeypatch, lambda: float(int(time.time() + offset)))
    finding = clock_finding(home, settings)
    assert finding.verdict == verdict
    assert word in finding.detail


def test_a_hub_alone_and_a_node_without_a_network_have_nobody_to_ask(home: Home) -> None:
    settings = config(host="127.0.0.1")
    assert "no network" in clock_finding(home, settings).detail
    found(home, settings)
    assert "no other hub" in clock_finding(home, settings).detail


def test_no_hub_that_answers_is_a_warning(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> float:
        raise FelloeError("network_unreachable", "connection refused")

    found(home)
    clock_of(monkeypatch, refuse)
    finding = clock_finding(home, config(advertise=("10.0.0.9",)))
    assert (finding.verdict, finding.detail) == ("warning", "no hub told its time: connection refused")


# The ports


def test_a_port_that_another_program_holds_is_named(home: Home) -> None:
    settings = config()
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", settings.peer.state_port + 1))
        taken.listen()
        finding = hub_ports_finding(home, settings, running=False)
    assert finding.verdict == "warning"
    assert f"the port after it {settings.peer.state_port + 1}" in finding.detail


def test_the_ports_of_a_running_hub_are_its_own(home: Home) -> None:
    found(home)
    assert "this node is a hub" in hub_ports_finding(home, config(), running=True).detail


def test_a_node_that_nobody_could_dial_is_warned_of(home: Home) -> None:
    finding = hub_ports_finding(home, config(host="127.0.0.1"), running=False)
    assert (finding.verdict, "127.0.0.1" in finding.detail) == ("warning", True)
    assert hub_ports_finding(home, config(host="127.0.0.1", hub=False), running=False).verdict == "ok"


# How many


def view(*names: str, down: str = "", writable: bool = True) -> HubsView:
    hubs = tuple(
        HubRow(
            id=name, name=name, addresses=(), alive=name != down, ready=True, keeps_state=True, leads=False, this=False
        )
        for name in names
    )
    return HubsView(hubs=hubs, wanted=0, generation=1, survives="survives much", writable=writable)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (view("a"), "ok"),
        (view("a", "b"), "warning"),
        (view("a", "b", "c"), "ok"),
        (view("a", "b", "c", down="b"), "warning"),
        (view("a", "b", "c", writable=False), "failed"),
    ],
)
def test_two_hubs_and_missing_hubs_are_told(seen: HubsView, verdict: str) -> None:
    finding = hubs_finding(seen)
    assert finding.verdict == verdict
    assert "the network survives much" in finding.detail


@pytest.mark.parametrize(
    ("days", "notes", "verdict"),
    [(6.5, (), "ok"), (2.0, (), "warning"), (-1.0, (), "failed"), (6.5, ("bob has to sign",), "warning")],
)
def test_a_catalogue_that_hubs_do_not_renew_is_told(days: float, notes: tuple[str, ...], verdict: str) -> None:
    now = 1_800_000_000.0
    seen = CatalogView(rows=(), threshold=1, expires_at=now + days * 86_400, notes=notes)
    finding = catalog_finding(seen, now)
    assert finding.verdict == verdict
    assert all(note in finding.detail for note in notes)
    assert bool(finding.next_step) == (days < 3)
