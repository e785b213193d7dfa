"""Runs of a node as the others see them: new lines, clocks that are set, copies of a home, and who is expelled."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from mesh_box import Box, open_boxes
from mesh_rosters import name_of

from felloe.domain.ids import NodeId
from felloe.domain.roster import Load, NodeRecord
from felloe.mesh.permissions import roster_load, roster_record
from felloe.mesh.roster_wire import Heartbeat, RosterPage, RosterRequest, decode_heartbeat, encode_record
from felloe.mesh.services import HubServices
from waiting import until


@pytest.fixture
async def boxes(tmp_path: Path) -> AsyncIterator[list[Box]]:
    async with open_boxes(3, tmp_path) as opened:
        yield opened


# New lines


async def test_a_living_node_with_a_new_line_is_told_as_moved_and_has_a_newer_record(boxes: list[Box]) -> None:
    moved: list[NodeId] = []
    lost: list[NodeId] = []
    watching = await boxes[0].run()
    watching.on_move(moved.append)
    watching.on_loss(lost.append)
    speaking = await boxes[1].run()
    await until(lambda: boxes[1].id in watching.snapshot().members)
    await until(lambda: watching._census.known[boxes[1].id].session > 0)
    before = watching.snapshot().members[boxes[1].id].record.issued_at
    speaking._connection.redial()
    await until(lambda: moved == [boxes[1].id])
    await until(lambda: watching.snapshot().members[boxes[1].id].record.issued_at > before)
    assert lost == []


def test_what_older_versions_say_is_read_and_they_read_what_this_one_says() -> None:
    class OldHeartbeat(msgspec.Struct, array_like=True):
        load: Load
        issued_at: float

    class OldRequest(msgspec.Struct, array_like=True):
        after: str = ""

    old = msgspec.msgpack.encode(OldHeartbeat(Load(active={"m": 1}), 5.0))
    assert decode_heartbeat(old) == Heartbeat(Load(active={"m": 1}), 5.0, 0, 0.0)
    new = msgspec.msgpack.encode(Heartbeat(Load(), 5.0, 7, 3.0))
    assert msgspec.msgpack.decode(new, type=OldHeartbeat).issued_at == 5.0
    request = msgspec.msgpack.encode(RosterRequest("x", ("y",)))
    assert msgspec.msgpack.decode(request, type=OldRequest).after == "x"
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(OldRequest("x")), type=RosterRequest) == RosterRequest("x")


# Clocks that are set


async def test_a_clock_that_is_set_does_not_stop_what_a_node_says(boxes: list[Box]) -> None:
    for jump in (-3600.0, 3600.0):
        clock = 0.0
        roster = await boxes[0].run(wall=lambda: time.time() + clock)  # noqa: B023
        issued = roster._speaking.record.issued_at
        clock = jump
        roster.set_record(roster._speaking.record)
        assert 0 < roster._speaking.record.issued_at - issued < 60


async def test_a_node_that_starts_again_with_an_earlier_clock_is_believed(boxes: list[Box]) -> None:
    watching = await boxes[0].run()
    lost: list[NodeId] = []
    watching.on_loss(lost.append)
    line = await boxes[1].line()
    issued = time.time() + 3600

    async def say(name: str, started_at: float, issued_at: float) -> None:
        record = boxes[1].record(name=name, started_at=started_at, issued_at=issued_at)
        await line.publish(roster_record(boxes[1].id), encode_record(record, boxes[1].key.sign))
        heartbeat = Heartbeat(Load(), issued_at, 1, started_at)
        await line.publish(roster_load(boxes[1].id), msgspec.msgpack.encode(heartbeat))

    await say("first run", 1000.0, issued)
    await until(lambda: name_of(watching, boxes[1].id) == "first run")
    async with asyncio.timeout(10):
        while name_of(watching, boxes[1].id) != "second run":
            await say("second run", 500.0, issued - 3600)
            await asyncio.sleep(0.1)
    assert lost == [boxes[1].id]
    await asyncio.sleep(2.2)
    await say("first run", 1000.0, issued - 4000)  # played again by a hub
    await say("second run, later", 500.0, issued - 3500)
    await until(lambda: name_of(watching, boxes[1].id) == "second run, later")
    assert lost == [boxes[1].id]


# Copies of a home


async def test_two_runs_with_one_key_learn_of_each_other_at_once(boxes: list[Box]) -> None:
    heard: dict[str, list[NodeRecord]] = {"first": [], "second": []}
    first = await boxes[0].run(listen=lambda roster: roster.on_double(heard["first"].append))
    second = await boxes[0].run(listen=lambda roster: roster.on_double(heard["second"].append))
    await until(lambda: heard["first"] and heard["second"], 5)
    assert heard["first"][0].started_at == second._speaking.record.started_at
    assert heard["second"][0].started_at == first._speaking.record.started_at
    assert first._speaking.record.started_at < second._speaking.record.started_at


async def test_the_echo_of_its_own_former_run_does_not_frighten_a_node(boxes: list[Box]) -> None:
    heard: list[NodeRecord] = []
    former = [boxes[0].record(started_at=10.0 + n, issued_at=20.0 + n) for n in range(3)]
    await boxes[0].run(listen=lambda roster: roster.on_double(heard.append))
    once = boxes[0].record(started_at=5.0, issued_at=time.time() + 1)
    line = await boxes[0].line()
    for record in (*former, *former, once, once):
        await line.publish(roster_record(boxes[0].id), encode_record(record, boxes[0].key.sign))
    marker = await boxes[1].run()
    await until(lambda: boxes[0].id in marker.snapshot().members)
    assert heard == []


# Who is expelled


async def test_the_expelled_vanish_at_once_and_are_not_heard_until_they_are_taken_back(boxes: list[Box]) -> None:
    watching = await boxes[0].run()
    lost: list[NodeId] = []
    watching.on_loss(lost.append)
    expelled, other = await boxes[1].run(), await boxes[2].run()
    await until(lambda: {boxes[1].id, boxes[2].id} <= watching.snapshot().members.keys())
    watching.ban(frozenset({boxes[1].id, boxes[0].id}))
    assert lost == [boxes[1].id]
    assert watching.snapshot().members.keys() == {boxes[0].id, boxes[2].id}, "never this node itself"
    expelled.set_load(lambda: Load(active={"m": 1}))
    other.set_load(lambda: Load(active={"m": 1}))
    await until(lambda: watching.snapshot().members[boxes[2].id].load.active == {"m": 1})
    assert boxes[1].id not in watching.snapshot().members
    watching.ban(frozenset())
    expelled.set_record(boxes[1].record())
    await until(lambda: boxes[1].id in watching.snapshot().members)


# What is asked of hubs


async def test_a_node_asks_once_for_what_it_lacks_and_not_for_everybody(boxes: list[Box]) -> None:
    asked: list[RosterRequest] = []
    services = HubServices(await boxes[2].line())

    async def page(request: RosterRequest) -> RosterPage:
        asked.append(request)
        return RosterPage([], more=False)

    await services.serve("roster", RosterRequest, page)
    listening = await boxes[0].run()
    await until(lambda: asked == [RosterRequest()])
    line = await boxes[1].line()
    for _ in range(60):
        await line.publish(roster_load(boxes[1].id), msgspec.msgpack.encode(Heartbeat(Load(), 5.0, 1, 1.0)))
        await asyncio.sleep(0.1)
    assert asked == [RosterRequest(), RosterRequest("", (boxes[1].id,))]
    listening._connection.redial()
    await listening._connection.wait_up(5)
    await asyncio.sleep(0.5)
    assert len(asked) == 2, "after a short gap it need not ask for everybody"
    await services.close()
