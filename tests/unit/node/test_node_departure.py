"""Leaving: what it means is said first, a hub is told, and keys go only when nothing speaks against it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from felloe.catalog.approval.trusted import TrustedCatalog
from felloe.domain.approval import Bundle
from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Endpoints
from felloe.host.files import make_private_directory
from felloe.hubs.records import CATALOG, HUBS, Generation, Hub, HubSet, encode
from felloe.hubs.saved_state import SAVED_NAME, read_saved, write_saved
from felloe.hubs.store import Entry
from felloe.node import departure
from felloe.node.config import NodeConfig
from felloe.node.departure import describe, leave_network
from felloe.node.founding import found_network
from felloe.node.home import Home
from felloe.node.network_files import NetworkFiles

ENDPOINTS = Endpoints(hosts=("10.0.0.1",), peer=8471, mesh=8472, route=8473, state=8474)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Of a hub alone in its network."""
    home = Home(tmp_path)
    home.prepare()
    found_network(NetworkFiles(home), NodeConfig(), "first")
    return home


@pytest.fixture
def spoke(home: Home) -> Home:
    return as_spoke(home)


def as_spoke(home: Home) -> Home:
    files = NetworkFiles(home)
    membership = files.membership()
    assert membership is not None
    files.save_membership(
        type(membership)(
            **{name: getattr(membership, name) for name in membership.__struct_fields__} | {"role": "spoke"}
        )
    )
    (home.state / SAVED_NAME).unlink()
    return home


def add_hubs(home: Home, *names: str) -> None:
    files = NetworkFiles(home)
    membership = files.membership()
    assert membership is not None
    ids = [membership.node, *(NodeId(letter * 26) for letter in "bcd"[: len(names)])]
    hubs = tuple(
        Hub(id=node, name=name, public_key=bytes(32), endpoints=ENDPOINTS, since=0.0)
        for node, name in zip(ids, ("first", *names), strict=True)
    )
    entries = {HUBS: Entry(encode(HubSet(hubs=hubs)), 1)}
    write_saved(files.saver(SAVED_NAME), Generation(number=1, hubs=(membership.node,)), entries)


def answer(monkeypatch: pytest.MonkeyPatch, problem: BaseException | None = None) -> list[NodeId]:
    """Have a hub take it, or fail so; who told it."""
    told: list[NodeId] = []

    async def leave(membership: Any, trust: Any, key: Any, *, now: Callable[[], float]) -> None:
        if problem is not None:
            raise problem
        told.append(membership.node)

    monkeypatch.setattr(departure, "leave", leave)
    return told


async def test_the_last_curator_who_could_approve_does_not_leave_unawares(home: Home) -> None:
    files = NetworkFiles(home)
    saved, trust = read_saved(files.read_state(SAVED_NAME), home.state / SAVED_NAME), files.trust()
    assert saved is not None and trust is not None
    await TrustedCatalog(make_private_directory(home.catalog), trust.catalog).take(
        Bundle.decode(saved.entries[CATALOG].value or b"")
    )
    as_spoke(home)
    with pytest.raises(FelloeError, match="felloe curators add"):
        describe(home.folder)
    assert "curator's key is deleted" in describe(home.folder, force=True)
    files.curator_key_path.unlink()
    assert "curator" not in describe(home.folder)


def test_the_only_hub_ends_the_network_and_tells_nobody(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    told = answer(monkeypatch)
    assert "ENDS the network" in describe(home.folder)
    assert leave_network(home.folder) == ""
    assert told == []
    assert list(home.keys.iterdir()) == []
    with pytest.raises(FelloeError, match="belongs to no network"):
        leave_network(home.folder)


def test_one_hub_of_several_is_demoted_first(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch)
    add_hubs(home, "attic", "cellar")
    for act in (describe, leave_network):
        with pytest.raises(FelloeError, match="felloe demote first` on attic or cellar") as refused:
            act(home.folder)
        assert refused.value.code == "wrong_node"
    assert NetworkFiles(home).membership() is not None
    assert "felloe revoke first" in describe(home.folder, force=True)
    leave_network(home.folder, force=True)
    assert NetworkFiles(home).membership() is None


def test_a_spoke_tells_a_hub_and_then_forgets_its_keys(spoke: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    told = answer(monkeypatch)
    membership = NetworkFiles(spoke).membership()
    assert membership is not None
    assert "needs a new invitation" in describe(spoke.folder)
    assert leave_network(spoke.folder) == "the hubs have removed it from the members"
    assert told == [membership.node]
    assert list(spoke.keys.iterdir()) == []


@pytest.mark.parametrize(
    ("problem", "word"),
    [
        (FelloeError("network_unreachable", "10.0.0.1:8471: connection refused"), "connection refused"),
        (TimeoutError(), "no hub answered in 15 s"),
    ],
)
def test_without_a_hub_it_leaves_all_the_same_and_says_what_is_left_to_do(
    spoke: Home, monkeypatch: pytest.MonkeyPatch, problem: BaseException, word: str
) -> None:
    answer(monkeypatch, problem)
    said = leave_network(spoke.folder)
    assert word in said and "felloe revoke first" in said
    assert NetworkFiles(spoke).membership() is None


def test_a_node_that_is_about_to_be_a_hub_keeps_its_keys(spoke: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, FelloeError("forbidden", "first is a hub; demote it before it leaves"))
    with pytest.raises(FelloeError, match="Nothing was deleted"):
        leave_network(spoke.folder)
    assert NetworkFiles(spoke).membership() is not None
    leave_network(spoke.folder, force=True)
    assert NetworkFiles(spoke).membership() is None
