"""What becomes of streams when nodes and hubs are killed, frozen or cut off: they fail soon, and never hang."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from mesh_network import Member, Network, child, hub, join
from mesh_rosters import alive
from mesh_streams import everything, failure, hang

from felloe.domain.errors import FelloeError
from felloe.mesh.exchange import Exchange
from felloe.mesh.outgoing import Outgoing
from felloe.mesh.roster_service import RosterService
from waiting import until


async def asker(network: Network) -> tuple[Member, Exchange, RosterService]:
    """A node whose exchange hears of deaths from its roster, as the composition root wires it."""
    member = network.member()
    exchange = await network.exchange(member)
    roster = await join(network, member)
    roster.on_loss(exchange.node_lost)
    return member, exchange, roster


async def test_a_killed_answerer_fails_its_streams_within_a_second(network: Network, tmp_path: Path) -> None:
    await hub(network)
    _, exchange, roster = await asker(network)
    member = network.member()
    async with child(network, member, tmp_path) as process:
        await until(lambda: member.id in alive(roster))
        streams = [await exchange.open(member.id, b"request") for _ in range(20)]
        reading = [asyncio.create_task(failure(stream)) for stream in streams]
        await until(lambda: exchange.asked == 20)
        process.kill()
        failures = await asyncio.wait_for(asyncio.gather(*reading), 1.0)
        assert {error.code for error in failures} == {"replica_lost"}


async def test_a_frozen_answerer_fails_its_streams_within_the_silence_allowed(network: Network, tmp_path: Path) -> None:
    await hub(network)
    _, exchange, roster = await asker(network)
    member = network.member()
    async with child(network, member, tmp_path) as process:
        await until(lambda: member.id in alive(roster))
        stream = await exchange.open(member.id, b"request", silence_seconds=2.0)
        heard: list[bytes] = []
        reading = asyncio.create_task(stream.pump(heard.append))
        await until(lambda: heard)
        assert heard[0] == b"0"
        os.kill(process.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(FelloeError, match="replica_lost"):
            await asyncio.wait_for(reading, 5)
        assert time.monotonic() - began < 3.5


async def test_a_killed_hub_fails_all_streams_and_frees_all_handlers(network: Network) -> None:
    answerer = network.member()
    answering = await network.exchange(answerer)
    ended = asyncio.Event()

    async def hang(request: bytes, outgoing: Outgoing) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    answering.serve(hang)
    asking = await network.exchange(network.member(), grace_seconds=0.5)
    stream = await asking.open(answerer.id, b"request", silence_seconds=60)
    await until(lambda: answering.answered == 1)
    assert network.server.process_id is not None
    os.kill(network.server.process_id, signal.SIGKILL)
    await asyncio.wait_for(ended.wait(), 1.0)
    with pytest.raises(FelloeError, match="lost its hub"):
        await asyncio.wait_for(everything(stream), 3)
    with pytest.raises(FelloeError) as refused:
        await asking.open(answerer.id, b"request")
    assert refused.value.code == "network_unreachable"


async def test_streams_work_again_after_a_hub_came_back(network: Network) -> None:
    async def echo(request: bytes, outgoing: Outgoing) -> None:
        await outgoing.finish(request)

    answerer = network.member()
    answering = await network.exchange(answerer)
    answering.serve(echo)
    asking = await network.exchange(network.member())
    running = asyncio.create_task(network.server.run())
    assert network.server.process_id is not None
    os.kill(network.server.process_id, signal.SIGKILL)
    deadline = time.monotonic() + 20
    answer: list[bytes] = []
    while not answer and time.monotonic() < deadline:
        try:
            answer = await everything(await asking.open(answerer.id, b"request", silence_seconds=1.0))
        except FelloeError as error:
            assert error.code in ("replica_lost", "line_lost", "network_unreachable")
            await asyncio.sleep(0.02)
    assert answer == [b"request"]
    await network.close()
    await network.server.stop()
    await running


async def test_a_stream_outlives_a_short_gap_in_the_askers_line_when_nothing_was_lost(network: Network) -> None:
    go_on = asyncio.Event()

    async def prefill(request: bytes, outgoing: Outgoing) -> None:
        await go_on.wait()
        await outgoing.finish(b"at last")

    answerer, member = network.member(), network.member()
    answering = await network.exchange(answerer)
    answering.serve(prefill)
    line = await network.connect(member)
    asking = Exchange(line, member.id)
    await asking.start()
    network.closers.append(asking.close)
    stream = await asking.open(answerer.id, b"request")
    await until(lambda: answering.answered == 1)
    ups: list[str] = []
    line.on_up(lambda: ups.append("up"))
    line.redial()
    await until(lambda: ups == ["up"])
    go_on.set()
    assert await everything(stream) == [b"at last"]


async def test_an_asker_that_is_called_dead_but_lives_learns_that_its_answer_was_stopped(network: Network) -> None:
    answerer, member = network.member(), network.member()
    answering = await network.exchange(answerer)
    answering.serve(hang)
    asking = await network.exchange(member)
    stream = await asking.open(answerer.id, b"request", silence_seconds=60)
    await until(lambda: answering.answered == 1)
    answering.node_lost(member.id)
    with pytest.raises(FelloeError, match="line_lost"):
        await asyncio.wait_for(everything(stream), 2)
    assert answering.answered == 0
