"""A node leaves a hub that is cut off from most others, and only such a one."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from felloe.domain.ids import NodeId
from felloe.domain.roster import Endpoints, Roster
from felloe.hubs.records import Hub, HubSet
from felloe.mesh.connection import Connection
from felloe.node.isolation import PATIENCE_SECONDS, Isolation, unheard
from plain_hubs import PlainHubs
from routing_fakes import make_member
from waiting import until

NODE = NodeId("n" * 26)


def hub(number: int) -> Hub:
    where = Endpoints(hosts=("192.0.2.1",), peer=1, mesh=2, route=3, state=4)
    return Hub(id=NodeId(f"{number}" * 26), name=f"hub-{number}", public_key=bytes(32), endpoints=where, since=0)


def hubs(count: int) -> HubSet:
    return HubSet(hubs=tuple(hub(number) for number in range(count)))


def hearing(*numbers: int, dead: tuple[int, ...] = ()) -> Roster:
    members = [make_member(hub(number).id) for number in numbers]
    members += [make_member(hub(number).id, alive=False) for number in dead]
    return Roster(this=NODE, members={member.record.id: member for member in members})


@pytest.mark.parametrize(
    ("count", "heard", "expected"),
    [
        (1, (), (0,)),
        (1, (0,), ()),
        (2, (0,), ()),
        (3, (0,), (1, 2)),
        (3, (0, 2), ()),
        (4, (0, 2), ()),
        (5, (0, 1), (2, 3, 4)),
        (5, (0, 1, 2), ()),
    ],
)
def test_who_hears_half_of_the_hubs_stays(count: int, heard: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert unheard(hubs(count), hearing(*heard)) == tuple(hub(number) for number in expected)


def test_a_hub_that_is_dead_in_the_roster_is_not_heard() -> None:
    assert unheard(hubs(3), hearing(0, dead=(1, 2))) == (hub(1), hub(2))


class World:
    """A node between a hub that stands alone and two that hear each other; time moves by hand."""

    def __init__(self, alone: PlainHubs, others: PlainHubs) -> None:
        self.alone, self.others = alone, others
        self.time = 0.0
        self.roster = hearing(0)
        self.answering = True
        self.asked_at: list[float] = []
        self.line = Connection([*alone.urls, *others.urls], NODE, nearest=alone.urls[0])
        self.isolation = Isolation(
            self.line, hubs=lambda: hubs(3), roster=lambda: self.roster, answers=self.answers, clock=lambda: self.time
        )

    async def answers(self, hub: Hub) -> bool:
        if not self.asked_at or self.asked_at[-1] != self.time:
            self.asked_at.append(self.time)
        return self.answering and hub.name == "hub-2"

    async def pass_seconds(self, seconds: float) -> None:
        end = self.time + seconds
        while self.time < end:
            self.time += 1.0
            await self.isolation.look()
            await asyncio.sleep(0)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with PlainHubs(1, tmp_path / "alone") as alone, PlainHubs(2, tmp_path / "others") as others:
        world = World(alone, others)
        await world.line.start()
        assert world.line.url in alone.urls
        yield world
        await world.line.close()


async def test_it_leaves_a_hub_that_is_cut_off_when_another_answers(world: World) -> None:
    await world.pass_seconds(PATIENCE_SECONDS - 1)
    assert not world.asked_at
    await world.pass_seconds(1)
    await until(lambda: world.line.url in world.others.urls)


async def test_it_stays_when_the_others_are_really_gone_and_asks_ever_less(world: World) -> None:
    world.answering = False
    await world.pass_seconds(3600)
    assert world.line.url in world.alone.urls
    assert 10 < len(world.asked_at) < 20
    assert world.asked_at[1] - world.asked_at[0] == 2 * PATIENCE_SECONDS
    world.roster = hearing(0, 1, 2)
    await world.pass_seconds(60)
    world.roster, world.answering = hearing(0), True
    await world.pass_seconds(PATIENCE_SECONDS)
    await until(lambda: world.line.url in world.others.urls)


async def test_a_moment_of_silence_is_no_reason(world: World) -> None:
    for _ in range(100):
        world.roster = hearing(0)
        await world.pass_seconds(PATIENCE_SECONDS - 1)
        world.roster = hearing(0, 1)
        await world.pass_seconds(1)
    assert not world.asked_at
    assert world.line.url in world.alone.urls
