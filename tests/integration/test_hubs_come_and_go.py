"""Answers under way when a hub is killed or frozen: they go on, whole, after a pause that is measured here."""

import asyncio
import signal
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
from felloe.mesh.connection import Connection
from felloe.mesh.exchange import Exchange
from felloe.mesh.roster_service import RosterService
from felloe.mesh.services import HubServices
from felloe.privacy.sealing import SealingKeys, seal
from felloe.routing.admission import Admission
from felloe.routing.answering import AnsweringService
from felloe.routing.remote import RemoteAnswers
from felloe.routing.router import Router
from plain_hubs import PlainHub, PlainHubs
from routing_fakes import FakeEngines, Score, make_member, make_replica, make_request
from waiting import until

TOKENS = 400
TOKEN_SECONDS = 0.01
STREAMS = 12


class PacedEngines(FakeEngines):
    """An engine that gives a token every 10 ms."""

    async def answer(self, request: InferenceRequest, deliver: Deliver) -> Done:
        async def in_time(behind: Awaitable[None] | None) -> None:
            if behind is not None:
                await behind
            await asyncio.sleep(TOKEN_SECONDS)

        return await super().answer(request, lambda piece: in_time(deliver(piece)))


class Node:
    """A node as the composition root wires it, with a fake engine; `near` is the hub that it dials first, or `only`."""

    def __init__(self, hubs: PlainHubs, near: PlainHub, *, slots: int, only: bool = False) -> None:
        key = Ed25519PrivateKey.generate()
        raw = key.public_key().public_bytes_raw()
        self.id = NodeId(id_from_public_key(raw))
        self.line = Connection([near.url] if only else hubs.urls, self.id, nearest=near.url)
        replicas = (make_replica(slots=slots),) if slots else ()
        self.engines = PacedEngines(Score(TOKENS), *replicas)
        self.engines.loaded = replicas
        self.admission = Admission(self.engines)
        self.keys = SealingKeys()
        record = replace(
            make_member(self.id, *replicas).record,
            roles=("hub",),
            public_key=raw,
            sealing_config=self.keys.config,
            started_at=time.time(),
        )
        self.roster = RosterService(self.line, record, sign=key.sign)
        self.exchange = Exchange(self.line, self.id)
        self.exchange.serve(AnsweringService(self.keys, self.admission).handle)
        self.router = Router(self.roster, self.admission, RemoteAnswers(self.exchange, seal))
        self.roster.on_loss(self.exchange.node_lost)
        self.roster.on_move(self.exchange.node_moved)
        self.admission.on_change(lambda: self.roster.set_load(self.admission.load))
        self.services = HubServices(self.line)

    async def start(self) -> None:
        await self.line.start()
        await self.exchange.start()
        await self.roster.start()
        await self.roster.serve(self.services)

    async def close(self) -> None:
        await self.services.close()
        await self.exchange.close()
        await self.roster.close()
        await self.line.close()

    def sees(self, other: "Node") -> bool:
        member = self.roster.snapshot().members.get(other.id)
        return member is not None and member.alive


class Reading:
    """One client: what it got, and how long it waited at most."""

    def __init__(self, node: Node) -> None:
        self.frames: list[bytes] = []
        self.longest = 0.0
        self.begun = asyncio.Event()
        self._last = time.monotonic()
        self.task = asyncio.create_task(node.router.answer(make_request(), self._take))

    def _take(self, piece: Piece) -> None:
        now = time.monotonic()
        if self.frames:
            self.longest = max(self.longest, now - self._last)
        self._last = now
        self.frames.append(piece.frames)
        if len(self.frames) > 20:
            self.begun.set()

    async def whole(self) -> float:
        """The longest pause of an answer that is right to the byte."""
        assert await self.task == Score(TOKENS).done
        assert b"".join(self.frames) == Score(TOKENS).frames
        return self.longest


@pytest.fixture
async def hubs(tmp_path: Path) -> AsyncIterator[PlainHubs]:
    async with PlainHubs(2, tmp_path) as cluster:
        yield cluster


async def longest_pause(hubs: PlainHubs, number: signal.Signals, nodes: list[Node], asking: Node) -> float:
    """The longest pause of any stream when the first hub gets this signal in the middle of it."""
    for node in nodes:
        await node.start()
    try:
        for one in nodes:
            for other in nodes:
                await until(partial(one.sees, other))
        readings = [Reading(asking) for _ in range(STREAMS)]
        for reading in readings:
            await asyncio.wait_for(reading.begun.wait(), 20)
        hubs[0].signal(number)
        return max([await asyncio.wait_for(reading.whole(), 60) for reading in readings])
    finally:
        for reading in readings:
            reading.task.cancel()
        for node in nodes:
            await node.close()


WHERE = pytest.mark.parametrize(("asker", "answerer"), [(0, 0), (0, 1), (1, 0)])


@WHERE
async def test_a_killed_hub_is_a_short_pause(hubs: PlainHubs, asker: int, answerer: int) -> None:
    asking, answering = Node(hubs, hubs[asker], slots=0), Node(hubs, hubs[answerer], slots=STREAMS)
    pause = await longest_pause(hubs, signal.SIGKILL, [asking, answering], asking)
    print(f"kill -9, asker on {asker}, answerer on {answerer}: {pause * 1000:.0f} ms")
    assert pause < 1.0


@WHERE
@pytest.mark.slow
async def test_a_frozen_hub_is_a_pause_of_seconds_at_most(hubs: PlainHubs, asker: int, answerer: int) -> None:
    asking, answering = Node(hubs, hubs[asker], slots=0), Node(hubs, hubs[answerer], slots=STREAMS)
    pause = await longest_pause(hubs, signal.SIGSTOP, [asking, answering], asking)
    print(f"SIGSTOP, asker on {asker}, answerer on {answerer}: {pause * 1000:.0f} ms")
    assert pause < 4.0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_with_another_replica_an_answer_goes_on_there(hubs: PlainHubs, number: signal.Signals) -> None:
    asking = Node(hubs, hubs[1], slots=0)
    answering = [Node(hubs, hubs[0], slots=STREAMS), Node(hubs, hubs[1], slots=STREAMS)]
    pause = await longest_pause(hubs, number, [asking, *answering], asking)
    print(f"{number.name}, two answerers: {pause * 1000:.0f} ms")
    assert pause < (1.0 if number is signal.SIGKILL else 4.0)


async def test_a_hub_that_dies_with_the_replica_beside_it_is_a_short_pause(hubs: PlainHubs) -> None:
    """As when the machine of a hub dies: nobody is left to tell that its node is gone."""
    asking = Node(hubs, hubs[1], slots=0)
    answering = [Node(hubs, hubs[0], slots=STREAMS, only=True), Node(hubs, hubs[1], slots=STREAMS)]
    pause = await longest_pause(hubs, signal.SIGKILL, [asking, *answering], asking)
    print(f"SIGKILL of a hub and a replica: {pause * 1000:.0f} ms")
    assert answering[1].engines.requests
    assert pause < 1.5


async def test_without_any_hub_an_answer_goes_on_at_the_own_replica(hubs: PlainHubs) -> None:
    asking = Node(hubs, hubs[0], slots=STREAMS, only=True)
    here, asking.engines.loaded = asking.engines.loaded, ()
    answering = Node(hubs, hubs[0], slots=STREAMS)
    answering.line.on_down(lambda: setattr(asking.engines, "loaded", here))
    pause = await longest_pause(hubs, signal.SIGKILL, [asking, answering], asking)
    print(f"SIGKILL of the only hub, a replica here: {pause * 1000:.0f} ms")
    assert asking.engines.requests
    assert pause < 1.0
