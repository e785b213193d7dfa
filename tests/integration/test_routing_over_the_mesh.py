"""Router, real seal and real mesh together: three answering nodes and an asking one on one nats-server."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from felloe.domain.ids import NodeId, id_from_public_key
from felloe.domain.ports import Deliver
from felloe.domain.requests import Done, InferenceRequest, Piece
from felloe.domain.roster import Member
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.certificates import client_context, hub_tls_name
from felloe.mesh.connection import Connection
from felloe.mesh.credentials import sign_nonce
from felloe.mesh.exchange import Exchange
from felloe.mesh.nats_server import NatsServer
from felloe.mesh.rotation import found
from felloe.mesh.session import Login
from felloe.privacy.sealing import SealingKeys, seal
from felloe.routing.admission import Admission
from felloe.routing.answering import AnsweringService
from felloe.routing.remote import RemoteAnswers
from felloe.routing.router import Router
from mesh_servers import message_server, message_settings
from routing_fakes import (
    MODEL,
    Death,
    Deaths,
    FakeEngines,
    FakeRosters,
    Outcome,
    Reader,
    Score,
    collect,
    make_member,
    make_replica,
    make_request,
    make_roster,
    settle,
)
from waiting import until


class Node:
    """One node on the mesh with a fake engine."""

    def __init__(self, connection: Connection, node: NodeId) -> None:
        self.id = node
        self.connection = connection
        self.exchange = Exchange(connection, node)
        self.keys = SealingKeys()
        self.engines = FakeEngines(Score(40), groups=(1, 3, 2))
        self.admission = Admission(self.engines)
        self.exchange.serve(AnsweringService(self.keys, self.admission).handle)

    def member(self) -> Member:
        seen = make_member(self.id, make_replica())
        return Member(
            record=replace(seen.record, sealing_config=self.keys.config), load=seen.load, alive=True, seen_at=0.0
        )


class Mesh:
    def __init__(self, authority: NetworkAuthority, server: NatsServer) -> None:
        self.authority = authority
        self.server = server
        self.nodes: list[Node] = []

    async def join(self) -> Node:
        key = Ed25519PrivateKey.generate()
        raw = key.public_key().public_bytes_raw()
        node = NodeId(id_from_public_key(raw))
        credential = self.authority.issue(raw, "spoke", time.time(), seconds=3600)
        connection = Connection(
            [f"tls://127.0.0.1:{self.server.port}"],
            node,
            login=lambda: Login(credential.user_token, partial(sign_nonce, key)),
            tls=client_context(self.authority.issuer),
            server_name=hub_tls_name(self.authority.network),
        )
        await connection.start(wait_seconds=10.0)
        member = Node(connection, node)
        self.nodes.append(member)
        await member.exchange.start()
        await connection.flush()
        return member


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    authority = found(time.time()).authority
    key = Ed25519PrivateKey.generate()
    credential = authority.issue(key.public_key().public_bytes_raw(), "hub", time.time(), addresses=["127.0.0.1"])
    server = message_server(authority, message_settings(authority, key, credential, tmp_path))
    await server.start()
    opened = Mesh(authority, server)
    try:
        yield opened
    finally:
        for node in opened.nodes:
            await node.exchange.close()
            await node.connection.close()
        await server.stop()


class World:
    """An asking node whose router knows three others, of which `first` has no rival at the start."""

    def __init__(self, asking: Node, answering: list[Node]) -> None:
        self.asking = asking
        self.answering = answering
        self.rosters = FakeRosters(self.roster(answering))
        local = Admission(FakeEngines(None, make_replica("unrelated")))
        self.router = Router(self.rosters, local, RemoteAnswers(asking.exchange, seal), patience_seconds=0.2)

    def roster(self, nodes: list[Node]):  # type: ignore[no-untyped-def]
        return make_roster(*(node.member() for node in nodes), this=self.asking.id)

    async def answer(self, request: InferenceRequest | None = None) -> Outcome:
        return await collect(self.router, request or make_request())

    @property
    def busy(self) -> Node:
        return next(node for node in self.answering if node.engines.running)


async def world(mesh: Mesh) -> World:
    return World(await mesh.join(), [await mesh.join() for _ in range(3)])


def hold_after(node: Node, pieces: int) -> asyncio.Event:
    """The node's engine stops after so many pieces until the event is set."""
    go_on = asyncio.Event()
    play = node.engines.answer

    async def halting(request: InferenceRequest, deliver: Deliver) -> Done:
        given = 0

        async def pause(behind: Awaitable[None] | None) -> None:
            if behind is not None:
                await behind
            await settle(3)  # each piece leaves in a message of its own
            if given == pieces:
                await go_on.wait()

        def take(piece: Piece) -> Awaitable[None]:
            nonlocal given
            given += 1
            return pause(deliver(piece))

        return await play(request, take)

    node.engines.answer = halting  # type: ignore[method-assign]
    return go_on


async def test_a_sealed_answer_arrives_whole(mesh: Mesh):
    pieces, done, error = await (await world(mesh)).answer()
    assert error is None and done == Score(40).done
    assert b"".join(piece.frames for piece in pieces) == Score(40).frames


async def test_a_large_answer_arrives_whole(mesh: Mesh):
    there = await world(mesh)
    for node in there.answering:
        node.engines.score = Score(20_000)
        node.engines.groups = (5000,)
    pieces, done, _ = await there.answer()
    assert done is not None
    assert b"".join(piece.frames for piece in pieces) == Score(20_000).frames


async def test_when_the_answering_nodes_line_is_cut_the_next_one_goes_on(mesh: Mesh):
    there = await world(mesh)
    for node in there.answering:
        hold_after(node, 7)
    reader = Reader(partial(there.router.answer, make_request()))
    pieces = [await reader.next() for _ in range(5)]
    broken = there.busy
    for node in there.answering:
        if node is not broken:
            node.engines.answer = FakeEngines(Score(40)).answer  # type: ignore[method-assign]
    await broken.connection.close()
    there.asking.exchange.node_lost(broken.id)
    rest, done = await reader.rest()
    assert done == Score(40).done
    pieces += rest
    assert b"".join(piece.frames for piece in pieces) == Score(40).frames
    assert [token for piece in pieces for token in piece.ids] == Score(40).ids
    assert there.router.stats().resumed == 1


async def test_when_the_engine_dies_the_next_node_goes_on(mesh: Mesh):
    there = await world(mesh)
    deaths = Deaths(Death(9), Death(4))
    for node in there.answering:
        node.engines.deaths = deaths
    pieces, done, error = await there.answer()
    assert error is None and done == Score(40).done
    assert b"".join(piece.frames for piece in pieces) == Score(40).frames
    assert there.router.stats().resumed == 2


async def test_a_node_that_started_anew_cannot_open_and_another_answers(mesh: Mesh):
    there = await world(mesh)
    for node in there.answering[1:]:
        node.exchange.serve(AnsweringService(SealingKeys(), node.admission).handle)
    for _ in range(5):
        _, done, _ = await there.answer()
        assert done is not None
    assert there.answering[0].engines.closed == 5


async def test_closing_the_answer_stops_the_engine_on_the_other_node(mesh: Mesh):
    there = await world(mesh)
    for node in there.answering:
        hold_after(node, 7)
    reader = Reader(partial(there.router.answer, make_request()))
    await reader.next()
    busy = there.busy
    closed_at = time.monotonic()
    await reader.close()
    await until(lambda: busy.engines.running == 0)
    assert time.monotonic() - closed_at < 1.0
    assert busy.admission.busy(MODEL).active == 0


async def test_a_request_too_large_to_travel_is_the_callers_fault(mesh: Mesh):
    there = await world(mesh)
    request = make_request(body={"messages": "x" * (9 * 1024 * 1024)})
    _, _, error = await there.answer(request)
    assert error is not None and error.code == "body_too_large"
