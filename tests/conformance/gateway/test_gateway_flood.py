"""A flood of requests: new ones are shed with the time to come again, running streams go on at full pace."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_house import MODELS

from felloe.domain.errors import FelloeError
from felloe.domain.ports import Deliver
from felloe.domain.requests import Done, InferenceRequest
from felloe.gateway import ApiKeys, Gateway, GatewayConfig, Limits, Listener, Metrics, NodeStatus
from felloe.routing.admission import Admission
from felloe.routing.router import Router
from routing_fakes import MODEL, FakeEngines, FakeNodes, FakeRosters, Score, make_replica, make_roster

TOKENS = 150
TOKEN_SECONDS = 0.01
SLOTS = 4
QUEUE = 8
FLOOD = 100
PAUSE_SECONDS = 5.0
"""A stream that had to wait for the flood to be worked off would pause for much longer."""
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}


class PacedEngines(FakeEngines):
    """An engine that gives a token every 10 ms."""

    async def answer(self, request: InferenceRequest, deliver: Deliver) -> Done:
        async def in_time(behind: Awaitable[None] | None) -> None:
            if behind is not None:
                await behind
            await asyncio.sleep(TOKEN_SECONDS)

        return await super().answer(request, lambda piece: in_time(deliver(piece)))


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    admission = Admission(PacedEngines(Score(TOKENS), make_replica(slots=SLOTS)), queue_limit=QUEUE)
    router = Router(FakeRosters(make_roster()), admission, FakeNodes({}))
    config = GatewayConfig(listeners=(Listener(port=0),), limits=Limits())
    keys = ApiKeys(tmp_path / "api-keys.json")
    opened = Gateway(config, router, lambda: MODELS, keys, lambda: NodeStatus(ready=True), Metrics())
    await opened.start()
    yield opened
    await opened.stop(0)


async def read(client: httpx.AsyncClient, begun: asyncio.Event) -> tuple[int, float]:
    """How many events a stream had, and its longest pause after the first one."""
    events, longest, last = 0, 0.0, 0.0
    async with client.stream("POST", "/chat/completions", json=CHAT) as answer:
        assert answer.status_code == 200
        async for _ in answer.aiter_bytes():
            now = time.monotonic()
            longest, last = max(longest, now - last if events else 0.0), now
            events += 1
            if events == 5:
                begun.set()
    return events, longest


async def test_a_flood_is_shed_and_running_streams_go_on(gateway: Gateway) -> None:
    limits = httpx.Limits(max_connections=FLOOD + SLOTS + QUEUE)
    async with httpx.AsyncClient(base_url=gateway.base_url, limits=limits, timeout=60) as client:
        begun = [asyncio.Event() for _ in range(SLOTS)]
        running = [asyncio.create_task(read(client, event)) for event in begun]
        for event in begun:
            await asyncio.wait_for(event.wait(), 10)
        waiting = [asyncio.create_task(read(client, asyncio.Event())) for _ in range(QUEUE)]
        await asyncio.sleep(0.1)
        flood = await asyncio.gather(*(client.post("/chat/completions", json=CHAT) for _ in range(FLOOD)))
        results = await asyncio.gather(*running)
        for answer in flood:
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "overloaded"
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        for events, longest in results:
            assert events >= TOKENS
            assert longest < PAUSE_SECONDS
        assert all(events >= TOKENS for events, _ in await asyncio.gather(*waiting))


async def test_the_bodies_of_all_requests_together_are_bounded(start_gateway: Any) -> None:
    gate = asyncio.Event()

    async def hold(request: InferenceRequest) -> Any:
        await gate.wait()
        raise FelloeError("no_replica", "the test is over")
        yield

    house = await start_gateway(hold, limits=Limits(all_bodies_bytes=300_000))
    large = json.dumps({**CHAT, "model": "tiny-python", "messages": [{"role": "user", "content": "x" * 200_000}]})
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(base_url=house.root + "/v1", timeout=30) as client:
        held = asyncio.create_task(client.post("/chat/completions", content=large, headers=headers))
        await asyncio.wait_for(house.answers.began.wait(), 10)
        shed = await client.post("/chat/completions", content=large, headers=headers)
        assert (shed.status_code, shed.headers["retry-after"]) == (503, "1")
        small = asyncio.create_task(client.post("/chat/completions", json=CHAT))
        gate.set()
        assert (await held).status_code == (await small).status_code == 503
        again = await client.post("/chat/completions", content=large, headers=headers)
        assert again.json()["error"]["code"] == "no_replica", "what was held is free again"
