"""A drain lets answers end, is bounded in time, and ends the node whatever happens."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from felloe.console.messages import DrainStep
from felloe.domain.errors import FelloeError
from felloe.gateway.server import Gateway
from felloe.mesh.exchange import Exchange
from felloe.node.draining import Draining
from felloe.routing.admission import Admission
from routing_fakes import (
    HERE,
    MODEL,
    FakeEngines,
    FakeRosters,
    Score,
    collect,
    make_member,
    make_replica,
    make_request,
    make_roster,
    node_id,
    settle,
)


class FakeGateway:
    """Its own clients' answers run until `clients_gone`."""

    def __init__(self) -> None:
        self.clients_gone = asyncio.Event()
        self.clients_gone.set()
        self.stops: list[float] = []
        self.error: Exception | None = None

    async def stop(self, grace_seconds: float) -> None:
        self.stops.append(grace_seconds)
        if self.error is not None:
            raise self.error
        await self.clients_gone.wait()


class House:
    """A node's parts as far as a drain needs them; its engine answers while `engines.gate` is open."""

    def __init__(self, *others: str) -> None:
        self.engines = FakeEngines(Score(3), make_replica(slots=2))
        self.admission = Admission(self.engines)
        self.gateway = FakeGateway()
        self.asked = 0
        members = [make_member(node_id(number), make_replica(name)) for number, name in enumerate(others)]
        self.stopped = asyncio.Event()
        self.draining = Draining(
            self.admission,
            cast(Gateway, self.gateway),
            cast(Exchange, self),
            FakeRosters(make_roster(make_member(HERE, make_replica()), *members)),
            stop=self.stopped.set,
        )

    def ask(self) -> "asyncio.Task[Any]":
        return asyncio.ensure_future(collect(self.admission, make_request()))

    async def steps(self) -> list[DrainStep]:
        async with asyncio.timeout(10):
            return [step async for step in self.draining.steps()]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    built = House()
    yield built
    built.engines.gate.set()
    await built.draining.close()


async def test_an_idle_node_is_drained_at_once(house: House) -> None:
    house.draining.begin(30)
    steps = await house.steps()
    assert steps[-1] == DrainStep(running=0, only_here=(MODEL,), ended=True)
    assert house.stopped.is_set()
    assert len(house.gateway.stops) == 1


async def test_answers_end_before_the_gateway_and_the_gateway_before_the_node(house: House) -> None:
    house.engines.gate.clear()
    running = house.ask()
    await settle()
    house.draining.begin(30)
    house.gateway.clients_gone.clear()
    following = asyncio.ensure_future(house.steps())
    await settle()
    _, _, refused = await house.ask()
    assert refused is not None and refused.code == "draining"
    assert house.admission.load().draining
    assert house.gateway.stops == [] and not house.stopped.is_set()
    house.engines.gate.set()
    _, done, _ = await running
    assert done is not None
    await settle()
    assert len(house.gateway.stops) == 1 and not house.stopped.is_set()
    house.gateway.clients_gone.set()
    steps = await following
    assert steps[0].running == 1 and steps[-1].ended
    assert house.stopped.is_set()


async def test_what_still_runs_after_the_time_does_not_keep_the_node(house: House) -> None:
    house.engines.gate.clear()
    running = house.ask()
    await settle()
    house.draining.begin(0)
    steps = await house.steps()
    assert steps[-1] == DrainStep(running=1, only_here=(MODEL,), ended=True)
    assert house.stopped.is_set() and not running.done()
    house.engines.gate.set()
    await running


async def test_asked_again_it_only_changes_the_time_that_is_left(house: House) -> None:
    house.engines.gate.clear()
    running = house.ask()
    await settle()
    house.draining.begin(80_000)
    await settle()
    assert not house.stopped.is_set()
    house.draining.begin(0)
    assert (await house.steps())[-1].ended
    assert house.stopped.is_set()
    house.engines.gate.set()
    await running


async def test_answers_that_come_from_other_nodes_count_as_running(house: House) -> None:
    house.asked = 2
    house.gateway.clients_gone.clear()
    house.draining.begin(30)
    following = asyncio.ensure_future(house.steps())
    await settle()
    house.asked = 0
    house.gateway.clients_gone.set()
    steps = await following
    assert steps[0].running == 2 and steps[-1].running == 0


async def test_whoever_follows_may_go_away(house: House) -> None:
    house.engines.gate.clear()
    running = house.ask()
    await settle()
    house.draining.begin(30)
    following = asyncio.ensure_future(house.steps())
    await settle()
    following.cancel()
    await asyncio.wait((following,))
    house.engines.gate.set()
    async with asyncio.timeout(10):
        await house.stopped.wait()
    await running


async def test_a_failure_in_the_drain_still_ends_the_node(house: House) -> None:
    house.gateway.error = RuntimeError("a bug")
    house.draining.begin(30)
    assert (await house.steps())[-1].ended
    assert house.stopped.is_set()


async def test_a_node_that_is_stopped_in_another_way_gives_the_drain_up(house: House) -> None:
    house.engines.gate.clear()
    running = house.ask()
    await settle()
    house.draining.begin(30)
    await settle()
    await house.draining.close()
    assert not house.stopped.is_set()
    house.engines.gate.set()
    await running


async def test_models_that_another_node_serves_are_not_named() -> None:
    house = House(MODEL)
    house.draining.begin(30)
    assert (await house.steps())[-1].only_here == ()


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e9])
async def test_a_time_that_is_none_is_refused(house: House, seconds: float) -> None:
    with pytest.raises(FelloeError, match="0 to 86400 seconds") as refused:
        house.draining.begin(seconds)
    assert refused.value.code == "invalid_value"
    assert not house.admission.load().draining
