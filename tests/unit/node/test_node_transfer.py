"""Two nodes that no hub connects: what they hold, and how the catalogue gets from one to the other."""

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from catalog_house import KEY, take, write_model
from felloe.catalog.manifests import content_id
from felloe.catalog.store import ModelStore
from felloe.domain.approval import Bundle
from felloe.domain.errors import FelloeError
from felloe.domain.roster import Load, Member, NodeRecord, Roster
from felloe.mesh.connection import Connection
from felloe.node.config import NodeConfig, PeerConfig
from felloe.node.transfer import Transfer
from member_house import House, open_house
from routing_fakes import make_member, node_id

BUNDLE = Bundle((b"root",), b"targets", b"snapshot", b"timestamp")


class FewApprovals:
    """A catalogue that believes everything, and says what was handed to it."""

    def __init__(self, bundle: Bundle | None) -> None:
        self.bundle = bundle
        self.approvals = None
        self.taken: list[Bundle] = []
        self.refusal: FelloeError | None = None

    async def take(self, offered: Bundle) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.taken.append(offered)


class Node:
    """A node's transfers, with a hub that is not there."""

    def __init__(self, house: House, folder: Path, bundle: Bundle | None) -> None:
        self.member = house.member()
        self.store = ModelStore(folder / self.member.id, KEY)
        self.catalog = FewApprovals(bundle)
        self.others: list[NodeRecord] = []
        identity = SimpleNamespace(
            files=SimpleNamespace(certificate_path=self.member.certificate, key_path=self.member.key),
            membership=SimpleNamespace(node=self.member.id),
            keeper=SimpleNamespace(on_change=lambda _: None),
            on_trust=lambda _: None,
            trust=house.trust,
        )
        self.transfer = Transfer(
            NodeConfig(peer=PeerConfig(host="127.0.0.1", transfer_port=0)),
            cast("Any", identity),
            Connection(["nats://127.0.0.1:1"], self.member.id),
            self.store,
            cast("Any", self.catalog),
            folder / "bans.json",
            roster=self.roster,
            is_busy=lambda: False,
            may_ask=lambda _: True,
            changed=lambda: None,
        )

    def roster(self) -> Roster:
        members = [Member(record=record, load=Load(), alive=False, seen_at=0) for record in self.others]
        return Roster(self.member.id, {member.record.id: member for member in members})

    def record(self) -> NodeRecord:
        said = make_member(node_id(1)).record
        return replace(said, id=self.member.id, transfer=self.transfer.place, holds=self.transfer.holds())


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[tuple[Node, Node]]:
    house = open_house(tmp_path / "house")
    pair = Node(house, tmp_path, None), Node(house, tmp_path, BUNDLE)
    for node in pair:
        await node.store.open()
        await node.transfer.start()
    pair[0].others.append(pair[1].record())
    yield pair
    for node in pair:
        await node.transfer.stop()


async def test_the_catalogue_comes_from_another_node_while_no_hub_is_there(nodes: tuple[Node, Node]) -> None:
    behind, _ = nodes
    await behind.transfer.ask_for_catalog()
    assert behind.catalog.taken == [BUNDLE]


async def test_a_catalogue_that_is_refused_or_missing_harms_nothing(nodes: tuple[Node, Node]) -> None:
    behind, other = nodes
    behind.catalog.refusal = FelloeError("catalog_refused", "it is forged")
    await behind.transfer.ask_for_catalog()
    other.catalog.bundle = None
    await behind.transfer.ask_for_catalog()
    await other.transfer.stop()
    await behind.transfer.ask_for_catalog()
    assert behind.catalog.taken == []


async def test_a_node_says_where_it_is_and_what_it_holds(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    node, _ = nodes
    assert node.transfer.place is not None and node.transfer.place.hosts == ("127.0.0.1",)
    assert node.transfer.holds() == ()
    write_model(tmp_path / "mine.gguf")
    await take(node.store, tmp_path / "mine.gguf", "mine")
    assert node.transfer.holds() == (content_id(node.store.manifest_of("mine"))[:16],)
    await node.transfer.stop()
    assert node.transfer.place is None


async def test_what_is_here_already_is_not_looked_for_elsewhere(
    nodes: tuple[Node, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, _ = nodes
    write_model(tmp_path / "mine.gguf")
    mine = await take(node.store, tmp_path / "mine.gguf", "mine")
    here = SimpleNamespace(listing=SimpleNamespace(content=content_id(node.store.manifest_of("mine"))))
    monkeypatch.setattr(node.transfer, "approved", lambda _: here)
    assert await node.transfer.pull("mine", lambda _: None) == mine


async def test_what_nobody_approved_is_not_fetched(nodes: tuple[Node, Node]) -> None:
    with pytest.raises(FelloeError) as refused:
        await nodes[0].transfer.pull("mine", lambda _: None)
    assert refused.value.code == "model_not_found"
    assert not await nodes[0].transfer.repair("mine", lambda _, __: None)
