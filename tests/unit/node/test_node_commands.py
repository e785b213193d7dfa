"""Draining another node: told by a hub, followed until that node is gone."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from felloe.console.messages import DrainStep
from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Roster
from felloe.node.commands import DRAIN, DrainCommand, DrainOrder, DrainState, RemoteDrain
from routing_fakes import FakeRosters, make_member, make_roster, node_id

ATTIC = node_id(1)


class Attic:
    """The other node, which ends one answer a second and stops after the last; `now` is everybody's clock."""

    def __init__(self, running: int) -> None:
        self.now = 0.0
        self.running = running
        self.draining = False
        self.orders: list[DrainOrder] = []
        self.problem: FelloeError | None = None
        self.rosters = FakeRosters(make_roster(make_member(ATTIC)))

    async def tell(self, node: NodeId, name: str, question: Any, answer: type[DrainState], /) -> DrainState:
        assert (node, name, answer) == (ATTIC, DRAIN, DrainState)
        self.orders.append(question)
        if self.problem is not None:
            raise self.problem
        self.draining = True
        return DrainState(self.running)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.running -= bool(self.running)
        if self.draining and not self.running:
            self.set_roster(make_roster(make_member(ATTIC, alive=False)))

    def set_roster(self, roster: Roster) -> None:
        self.rosters.set(roster)

    async def drain(self, seconds: float) -> list[DrainStep]:
        remote = RemoteDrain(ATTIC, "attic", self.tell, self.rosters, clock=lambda: self.now, sleep=self.sleep)
        return [step async for step in remote.steps(seconds)]


async def test_a_drain_is_followed_until_the_node_is_gone() -> None:
    attic = Attic(3)
    steps = await attic.drain(60.0)
    assert [step.running for step in steps] == [3, 2, 1, 0, 0]
    assert steps[-1] == DrainStep(ended=True, node="attic")
    assert attic.orders[0] == DrainOrder(60.0)
    assert set(attic.orders[1:]) == {DrainOrder()}


async def test_answers_that_were_not_finished_in_time_are_told() -> None:
    attic = Attic(50)

    async def stop_at_once(seconds: float) -> None:
        attic.now += seconds
        attic.set_roster(make_roster(make_member(ATTIC, alive=False)))

    attic.sleep = stop_at_once  # type: ignore[method-assign]
    assert (await attic.drain(1.0))[-1] == DrainStep(running=50, ended=True, node="attic")


async def test_a_node_that_was_started_again_has_drained() -> None:
    attic = Attic(2)

    async def restart(seconds: float) -> None:
        attic.now += seconds
        member = make_member(ATTIC)
        attic.set_roster(make_roster(replace(member, record=replace(member.record, started_at=5.0))))

    attic.sleep = restart  # type: ignore[method-assign]
    assert (await attic.drain(60.0))[-1].ended


async def test_a_silent_moment_does_not_end_the_drain() -> None:
    attic = Attic(30)
    asks = 0

    async def sleep(seconds: float) -> None:
        nonlocal asks
        asks += 1
        attic.problem = FelloeError("network_unreachable", "no line") if asks < 3 else None
        await Attic.sleep(attic, seconds)

    attic.sleep = sleep  # type: ignore[method-assign]
    assert (await attic.drain(60.0))[-1].ended


async def test_a_node_that_does_not_take_the_command_is_named() -> None:
    attic = Attic(1)
    attic.problem = FelloeError("network_unreachable", "nobody listens")
    with pytest.raises(FelloeError, match="attic did not take the command: nobody listens") as refused:
        await attic.drain(60.0)
    assert refused.value.code == "node_unreachable"


async def test_a_time_that_is_none_is_refused_by_the_node() -> None:
    attic = Attic(1)
    attic.problem = FelloeError("invalid_value", "a drain takes 0 to 86400 seconds")
    with pytest.raises(FelloeError, match="86400"):
        await attic.drain(-1.0)


async def test_a_node_that_never_stops_is_told_of() -> None:
    attic = Attic(10_000)
    with pytest.raises(FelloeError, match="has not stopped") as refused:
        await attic.drain(5.0)
    assert refused.value.code == "deadline_exceeded"


async def test_the_node_begins_when_told_and_only_looks_when_asked() -> None:
    begun: list[float] = []
    draining = SimpleNamespace(begin=begun.append, look=lambda: DrainStep(running=2, only_here=("tiny-python",)))
    command = DrainCommand(cast(Any, draining))
    assert await command.on_request(DrainOrder(7.0)) == DrainState(2, ("tiny-python",))  # type: ignore[arg-type]
    assert (await command.on_request(DrainOrder())).running == 2
    assert begun == [7.0]
