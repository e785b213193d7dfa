"""Members as the swarm sees them: over HTTPS where they can be dialled, else over the mesh, with the real server."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from felloe.catalog.transfer.pacing import Pacer
from felloe.catalog.transfer.peers import Lied
from felloe.catalog.transfer.serving import Answer
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, ModelDigest, NodeId, id_from_public_key
from felloe.domain.manifest import CHUNK_BYTES
from felloe.domain.roster import Endpoint, Load, Member, Roster
from felloe.mesh.connection import Connection
from felloe.mesh.fetching import FetchAnswer, FetchQuestion, FetchServer
from felloe.node.links import Links, asks_over_mesh
from felloe.node.transfer_peers import PeerFinder, RemotePeer
from felloe.node.transfer_server import TransferServer
from member_house import House, HouseMember, open_house
from plain_hubs import PlainHubs
from routing_fakes import make_member, node_id

CONTENT = ContentId("12" * 32)
DIGEST = ModelDigest("blake3:" + "ab" * 32)
BLOB = bytes(range(256)) * 32768  # two chunks
PATHS = {
    f"/blobs/{'ab' * 32}": BLOB,
    f"/blobs/{'ab' * 32}/have": b"\x03",
    f"/blobs/{'ab' * 32}/chunks": bytes(64),
    f"/manifests/{CONTENT}": b"manifest " * 32_000,
    "/catalog": b"catalogue",
}


class Library:
    """What the other node has, and how often each way was used."""

    def __init__(self) -> None:
        self.paths = dict(PATHS)
        self.asked: list[str] = []

    async def read(self, path: str, start: int, length: int | None) -> Answer:
        self.asked.append(path)
        whole = self.paths.get(path)
        if whole is None:
            raise FelloeError("not_found", "it is not here")
        return Answer(whole[start:] if length is None else whole[start : start + length], len(whole))

    async def read_piece(self, question: FetchQuestion) -> FetchAnswer:
        self.asked.append("mesh")
        answer = await self.read(question.path, question.start, question.length)
        return FetchAnswer(answer.size, answer.body)


class Town:
    """A node that asks, and another that answers both ways."""

    def __init__(self, house: House, hubs: PlainHubs) -> None:
        self.hubs = hubs
        self.asker, self.holder = house.member(), house.member()
        self.library = Library()
        self.server = TransferServer(self.holder.tls, self.library.read, Pacer(0), may_ask=lambda _: True)
        self.records: list[Any] = []
        self._lines: list[Connection] = []

    async def line(self, member: HouseMember) -> Connection:
        line = Connection(self.hubs.urls, member.id)
        self._lines.append(line)
        await line.start()
        return line

    async def open(self) -> None:
        self.questions = FetchServer(await self.line(self.holder))
        await self.questions.serve(self.library.read_piece)
        await self.server.start("127.0.0.1", 0)
        line = await self.line(self.asker)
        self.links = Links(asks_over_mesh(line), self.roster)
        self.finder = PeerFinder(line, self.roster, self.asker.tls, Pacer(0), self.links)
        self.place = Endpoint(hosts=("127.0.0.1",), port=self.server.port)

    async def close(self) -> None:
        self.finder.close()
        await self.questions.close()
        await self.server.stop()
        for line in self._lines:
            await line.close()

    def roster(self) -> Roster:
        members = {record.id: Member(record=record, load=Load(), alive=True, seen_at=0) for record in self.records}
        return Roster(self.asker.id, members)

    def add(self, *, place: Endpoint | None, holds: tuple[str, ...] = (CONTENT[:16],), **changes: Any) -> None:
        changes = {"id": self.holder.id, "transfer": place, "holds": holds, "started_at": 1.0} | changes
        self.records.append(replace(make_member(node_id(1)).record, **changes))

    def peer(self) -> RemotePeer:
        (peer,) = self.finder.holders(CONTENT)
        return peer


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with PlainHubs(1, tmp_path) as hubs:
        town = Town(open_house(tmp_path / "house"), hubs)
        await town.open()
        yield town
        await town.close()


def nowhere() -> Endpoint:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return Endpoint(hosts=("127.0.0.1",), port=free.getsockname()[1])


async def check_everything(peer: RemotePeer) -> None:
    came: list[int] = []
    assert await peer.have(DIGEST, 2) == b"\x03"
    assert await peer.chunks(DIGEST, 2) == bytes(64)
    assert await peer.manifest(CONTENT) == PATHS[f"/manifests/{CONTENT}"]
    assert await peer.bundle() == b"catalogue"
    assert await peer.read(DIGEST, 1, CHUNK_BYTES, came.append) == BLOB[CHUNK_BYTES:]
    assert sum(came) == CHUNK_BYTES


async def test_a_node_that_can_be_dialled_is_asked_over_https(town: Town) -> None:
    town.add(place=town.place)
    await check_everything(town.peer())
    assert "mesh" not in town.library.asked


@pytest.mark.parametrize("place", [None, nowhere()])
async def test_a_node_that_cannot_be_dialled_is_asked_over_the_mesh(town: Town, place: Endpoint | None) -> None:
    town.add(place=place)
    await check_everything(town.peer())
    assert "mesh" in town.library.asked


async def test_a_port_that_could_not_be_dialled_is_left_alone_until_the_node_says_another(town: Town) -> None:
    town.add(place=nowhere())
    await town.peer().bundle()
    dialled = town.peer()
    assert dialled._undialable_until > 0  # pyright: ignore[reportPrivateUsage]
    town.records.clear()
    town.add(place=town.place)
    town.library.asked.clear()
    assert await town.peer().bundle() == b"catalogue"
    assert town.library.asked == ["/catalog"]


async def test_what_a_node_has_not_got_is_not_found_on_either_way(town: Town) -> None:
    for place in (town.place, None):
        town.records.clear()
        town.add(place=place)
        with pytest.raises(FelloeError) as refused:
            await town.peer().have(ModelDigest("blake3:" + "cd" * 32), 2)
        assert refused.value.code == "not_found"


async def test_more_or_less_than_was_asked_for_is_a_lie(town: Town) -> None:
    for place in (town.place, None):
        town.records.clear()
        town.add(place=place)
        town.library.paths["/catalog"] = bytes(600 * 1024)
        with pytest.raises(Lied):
            await town.peer().bundle()
        for count in (1, 3):
            with pytest.raises(Lied):
                await town.peer().chunks(DIGEST, count)


async def test_who_hears_of_the_pieces_may_end_the_reading(town: Town) -> None:
    def refuse(_: int) -> None:
        raise Lied("enough")

    for place in (town.place, None):
        town.records.clear()
        town.add(place=place)
        with pytest.raises(Lied, match="enough"):
            await town.peer().read(DIGEST, 0, CHUNK_BYTES, refuse)


async def test_many_reads_at_once_stay_within_what_one_asker_may(town: Town) -> None:
    town.add(place=None)
    reads = [town.peer().read(DIGEST, number % 2, CHUNK_BYTES, lambda _: None) for number in range(4)]
    assert [len(chunk) for chunk in await asyncio.gather(*reads)] == [CHUNK_BYTES] * 4


async def test_only_living_members_of_known_versions_that_hold_it_are_asked(town: Town) -> None:
    def other() -> NodeId:
        return NodeId(id_from_public_key(Ed25519PrivateKey.generate().public_key().public_bytes_raw()))

    town.add(place=town.place)
    town.add(place=town.place, id=other(), version="99.0.0")
    town.add(place=town.place, id=other(), holds=("00" * 8,))
    town.add(place=town.place, id=town.asker.id)
    assert [peer.node for peer in town.finder.holders(CONTENT)] == [town.holder.id]


async def test_some_are_asked_for_the_catalogue_whoever_holds_what(town: Town) -> None:
    town.add(place=town.place, holds=())
    assert [await peer.bundle() for peer in town.finder.some(3)] == [b"catalogue"]


async def test_members_that_are_gone_are_forgotten(town: Town) -> None:
    town.add(place=town.place)
    first = town.peer()
    assert town.peer() is first
    town.records.clear()
    town.add(place=town.place, id=NodeId("a" * 26))
    town.peer()
    assert list(town.finder._peers) == [NodeId("a" * 26)]  # pyright: ignore[reportPrivateUsage]


async def test_connections_are_made_anew_after_a_restart_and_after_a_renewal(town: Town) -> None:
    town.add(place=town.place)
    before = town.peer()
    town.asker.tls.refresh()
    renewed = town.peer()
    town.records.clear()
    town.add(place=town.place, started_at=2.0)
    assert len({before, renewed, town.peer()}) == 3
