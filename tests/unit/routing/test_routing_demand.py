"""Models that are wanted and run nowhere: asked for once, waited for as the request says."""

import asyncio
from collections.abc import Callable
from random import Random

import pytest
from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName
from felloe.domain.requests import Done, InferenceRequest, Piece
from felloe.domain.roster import Replica
from felloe.domain.serving import DemandAnswer
from felloe.routing.admission import Admission
from felloe.routing.demand import MOST_WAITING, Demand
from felloe.routing.router import Router
from routing_fakes import (
    MODEL,
    Death,
    Deaths,
    FakeEngines,
    FakeNodes,
    FakeRosters,
    Outcome,
    Reader,
    Score,
    collect,
    make_member,
    make_replica,
    make_request,
    make_roster,
    node_id,
    settle,
)
from waiting import until

NODE = node_id(1)


class Leader:
    """Says `answer`, or fails with it; `held` keeps it from saying anything."""

    def __init__(self, answer: DemandAnswer | FelloeError) -> None:
        self.answer = answer
        self.wanted = {MODEL}
        self.asked: list[ModelName] = []
        self.speaks = asyncio.Event()
        self.speaks.set()

    def is_wanted(self, model: ModelName) -> bool:
        return model in self.wanted

    async def ask_for(self, model: ModelName) -> DemandAnswer:
        self.asked.append(model)
        await self.speaks.wait()
        if isinstance(self.answer, FelloeError):
            raise self.answer
        return self.answer


class World:
    """This node, which has nothing, another one that may load the model, and the leader."""

    def __init__(
        self,
        answer: DemandAnswer | FelloeError | None = None,
        *,
        most_waiting: int = MOST_WAITING,
        load_wait_seconds: float = 30.0,
        patience: float = 0.0,
        clock: Callable[[], float] | None = None,
        engines: FakeEngines | None = None,
    ) -> None:
        self.leader = Leader(answer or DemandAnswer("loading", 20.0))
        timing = {} if clock is None else {"clock": clock}
        self.demand = Demand(self.leader, most_waiting=most_waiting, **timing)
        self.engines = engines or FakeEngines(Score(5))
        self.nodes = FakeNodes({NODE: Admission(self.engines)})
        self.rosters = FakeRosters(make_roster(make_member(NODE)))
        self.router = Router(
            self.rosters,
            Admission(FakeEngines(None, make_replica("unrelated"))),
            self.nodes,
            demand=self.demand,
            load_wait_seconds=load_wait_seconds,
            patience_seconds=patience,
            random=Random(1),
        )
        self._said = 1.0

    def loads(self, *replicas: Replica) -> None:
        """The other node tells that it has this now."""
        self._said += 1
        self.rosters.set(make_roster(make_member(NODE, *replicas, issued_at=self._said)))

    def ask(self, **changes: object) -> asyncio.Task[Outcome]:
        return asyncio.create_task(collect(self.router, replace(make_request(), **changes)))


async def test_a_request_for_a_cold_model_waits_until_a_node_has_loaded_it():
    world = World()
    asked = world.ask()
    await until(lambda: world.leader.asked)
    world.loads(make_replica(state="starting"))
    await settle()
    assert not asked.done()
    world.loads(make_replica())
    pieces, done, error = await asked
    assert error is None and done == Score(5).done
    assert b"".join(piece.frames for piece in pieces) == Score(5).frames
    assert world.engines.requests[0].wait is None, "no other node is told how long somebody waits here"


async def test_many_who_wait_ask_the_leader_once():
    world = World()
    asked = [world.ask() for _ in range(40)]
    await until(lambda: world.leader.asked)
    await settle()
    world.loads(make_replica(slots=40))
    assert all(done is not None for _, done, _ in await asyncio.gather(*asked))
    assert world.leader.asked == [MODEL]


@pytest.mark.parametrize(("seconds", "told"), [(20.0, 20.0), (0.0, 5.0), (4000.0, 60.0), (float("nan"), 5.0)])
async def test_who_does_not_wait_is_told_when_to_come_again(seconds: float, told: float):
    world = World(DemandAnswer("loading", seconds))
    _, _, error = await world.ask(wait=0.0)
    assert error is not None and error.code == "model_loading" and error.status == 503
    assert error.retry_after == pytest.approx(told, abs=0.5)


async def test_a_wait_ends_when_the_request_wants_no_more_of_it():
    world = World()
    _, _, error = await world.ask(wait=0.05)
    assert error is not None and error.code == "model_loading"
    assert "20 s left" in error.detail


async def test_without_a_wish_of_its_own_a_request_waits_as_the_node_is_set():
    _, _, error = await World(load_wait_seconds=0.05).ask()
    assert error is not None and error.code == "model_loading"


async def test_what_does_not_fit_is_refused_at_once_in_the_plans_words():
    world = World(DemandAnswer("refused", 0.0, "2.1 GB short on\x1b[31m spoke-a"))
    _, _, error = await world.ask(wait=600.0)
    assert error is not None and error.code == "does_not_fit"
    assert error.detail == "2.1 GB short on[31m spoke-a"
    _, _, error = await world.ask(wait=600.0)
    assert error is not None and error.code == "does_not_fit"
    assert world.leader.asked == [MODEL], "a refusal is believed for some seconds"


async def test_a_refusal_that_the_plan_makes_a_moment_later_is_heard_soon():
    now = [0.0]
    world = World(DemandAnswer("wanted"), clock=lambda: now[0])
    asked = world.ask()
    await until(lambda: world.leader.asked)
    await settle()
    world.leader.answer = DemandAnswer("refused", 0.0, "nothing fits")
    now[0] += 1.0
    _, _, error = await asked
    assert error is not None and error.code == "does_not_fit"


async def test_a_refusal_of_long_ago_is_not_believed():
    now = [0.0]
    world = World(DemandAnswer("refused", 0.0, "nothing fits"), clock=lambda: now[0])
    await world.ask()
    now[0] += 3600.0
    world.leader.answer = DemandAnswer("loading", 3.0)
    asked = world.ask()
    await until(lambda: len(world.leader.asked) == 2)
    world.loads(make_replica())
    _, done, error = await asked
    assert done is not None and error is None


async def test_a_long_refusal_is_cut():
    _, _, error = await World(DemandAnswer("refused", 0.0, "x" * 10_000)).ask()
    assert error is not None and len(error.detail) == 500


async def test_what_is_not_wanted_any_more_is_not_found():
    world = World(FelloeError("model_not_found", "nobody wants it served"))
    _, _, error = await world.ask()
    assert error is not None and error.code == "model_not_found"


async def test_a_name_that_nobody_wants_is_never_asked_for():
    world = World()
    _, _, error = await world.ask(model="invented")
    assert error is not None and error.code == "model_not_found"
    assert not world.leader.asked


async def test_a_request_that_may_not_leave_the_device_loads_nothing():
    world = World()
    _, _, error = await world.ask(reach="device")
    assert error is not None and error.code == "model_not_found"
    assert not world.leader.asked


async def test_a_network_without_a_leader_is_named_and_the_wait_goes_on():
    now = [0.0]
    world = World(FelloeError("network_unreachable", "no hub answers"), clock=lambda: now[0])
    asked = world.ask()
    await until(lambda: world.leader.asked)
    _, _, error = await world.ask(wait=0.01)
    assert error is not None and error.code == "model_loading" and "network_unreachable" in error.detail
    now[0] += 1.5
    await until(lambda: len(world.leader.asked) == 2)
    world.loads(make_replica())
    _, done, _ = await asked
    assert done is not None


async def test_a_silent_leader_holds_nobody_who_does_not_wait():
    world = World()
    world.leader.speaks.clear()
    _, _, error = await world.ask(wait=0.0)
    assert error is not None and error.code == "model_loading" and error.retry_after == 5.0
    await world.router.close()


async def test_beyond_a_bound_nobody_else_waits():
    world = World(most_waiting=2)
    asked = [world.ask() for _ in range(2)]
    await until(lambda: world.leader.asked)
    await settle()
    _, _, error = await world.ask()
    assert error is not None and error.code == "overloaded" and error.retry_after == pytest.approx(20, abs=1)
    asked[0].cancel()
    await asyncio.wait([asked[0]])
    third = world.ask()
    await settle()
    assert not third.done(), "who is gone makes room"
    world.loads(make_replica())
    assert all(done is not None for _, done, _ in (await asked[1], await third))


async def test_the_leader_is_asked_again_while_somebody_waits():
    now = [0.0]
    world = World(clock=lambda: now[0])
    asked = world.ask()
    await until(lambda: len(world.leader.asked) == 1)
    await settle()
    now[0] += 5.0
    await until(lambda: len(world.leader.asked) == 2)
    world.loads(make_replica())
    await asked
    now[0] += 60.0
    await settle()
    assert len(world.leader.asked) == 2


async def test_what_a_model_that_came_cannot_do_is_named():
    world = World()
    asked = world.ask(kind="embedding", body={"input": ["x"]})
    await until(lambda: world.leader.asked)
    world.loads(make_replica())
    _, _, error = await asked
    assert error is not None and error.code == "unsupported_capability"


async def test_a_broken_answer_waits_for_the_model_to_be_loaded_elsewhere_and_goes_on():
    world = World(engines=FakeEngines(Score(5), deaths=Deaths(Death(3))))
    world.loads(make_replica())
    seen: list[Piece] = []

    def deliver(piece: Piece) -> None:
        seen.append(piece)
        if len(seen) == 2:
            world.rosters.set(make_roster(make_member(NODE, make_replica(), alive=False, issued_at=9.0)))

    answer: asyncio.Task[Done] = asyncio.create_task(world.router.answer(make_request(), deliver))
    await until(lambda: world.leader.asked)
    assert seen and not answer.done()
    world.rosters.set(make_roster(make_member(NODE, make_replica(), issued_at=10.0)))
    assert await answer == Score(5).done
    assert b"".join(piece.frames for piece in seen) == Score(5).frames


async def test_an_answer_whose_replica_died_gets_its_moment_also_without_a_wish_to_wait():
    world = World(engines=FakeEngines(Score(5), deaths=Deaths(Death(3))), patience=20.0)
    world.loads(make_replica())
    seen: list[Piece] = []

    def deliver(piece: Piece) -> None:
        seen.append(piece)
        if len(seen) == 2:
            world.loads(make_replica(state="starting"))

    answer: asyncio.Task[Done] = asyncio.create_task(world.router.answer(replace(make_request(), wait=0.0), deliver))
    await until(lambda: world.leader.asked)
    await settle()
    assert not answer.done()
    world.loads(make_replica())
    assert await answer == Score(5).done


async def test_a_broken_answer_that_can_be_loaded_nowhere_ends_with_a_lost_replica():
    world = World(DemandAnswer("refused", 0.0, "nothing fits"), engines=FakeEngines(Score(5), deaths=Deaths(Death(3))))
    world.loads(make_replica())
    reader = Reader(lambda deliver: world.router.answer(make_request(), deliver))
    await reader.next()
    world.rosters.set(make_roster(make_member(NODE, make_replica(), alive=False, issued_at=9.0)))
    with pytest.raises(FelloeError) as caught:
        await reader.rest()
    assert caught.value.code == "replica_lost" and "does_not_fit" in caught.value.detail


def make_wish(wait: float | None) -> InferenceRequest:
    return replace(make_request(), wait=wait)


@pytest.mark.parametrize("wait", [None, 0.0, 12.0])
async def test_a_model_that_runs_is_answered_whatever_the_wish(wait: float | None):
    world = World()
    world.loads(make_replica())
    _, done, _ = await collect(world.router, make_wish(wait))
    assert done is not None and not world.leader.asked
