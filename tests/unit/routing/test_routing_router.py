"""The router's refusals, resumes, deadlines and counts."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

import pytest
from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.requests import Done, Piece, ReplayResume, TokenResume
from felloe.domain.roster import Load, Member
from felloe.routing.admission import Admission
from felloe.routing.router import Router
from felloe.routing.rules import MOST_BARREN_FAILURES
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


class World:
    """A router on this node and engines on others."""

    def __init__(
        self,
        *others: FakeEngines,
        here: FakeEngines | None = None,
        patience: float = 0.0,
        queue_limit: int = 64,
        settled: bool = True,
    ) -> None:
        self.here = here or FakeEngines(None, make_replica("unrelated"))
        self.local = Admission(self.here, queue_limit=queue_limit)
        self.others = {node_id(number): engines for number, engines in enumerate(others, 1)}
        self.nodes = FakeNodes({n: Admission(e, queue_limit=queue_limit) for n, e in self.others.items()})
        self.rosters = FakeRosters(make_roster(*(self.member(node) for node in self.others)))
        self.router = Router(
            self.rosters,
            self.local,
            self.nodes,
            patience_seconds=patience,
            settled=lambda: settled,
            random=Random(1),
        )

    def member(self, node: NodeId, *, alive: bool = True, issued_at: float = 1.0, load: Load | None = None) -> Member:
        return make_member(node, *self.others[node].loaded, alive=alive, issued_at=issued_at, load=load)

    async def ask(self, **changes: object) -> tuple[list[Piece], Done | None, FelloeError | None]:
        return await collect(self.router, replace(make_request(), **changes))


def dying(*pieces: int, tokens: int = 5, with_ids: bool = True) -> FakeEngines:
    return FakeEngines(Score(tokens, with_ids=with_ids), deaths=Deaths(*(Death(count) for count in pieces)))


async def test_this_node_answers_what_it_can():
    world = World(FakeEngines(), here=FakeEngines(Score(4)))
    _, done, _ = await world.ask()
    assert done == Score(4).done
    assert world.nodes.asked == []
    assert world.router.stats().local == 1


async def test_another_node_answers_what_this_one_cannot():
    world = World(FakeEngines(Score(4)))
    _, done, _ = await world.ask()
    assert done == Score(4).done
    assert world.nodes.asked == [node_id(1)]


async def test_a_request_that_may_not_leave_the_device_does_not():
    world = World(FakeEngines())
    _, _, error = await world.ask(reach="device")
    assert error is not None and error.code == "model_not_found"
    assert world.nodes.asked == []


async def test_policy_holds_against_a_wider_wish():
    world = World(FakeEngines())
    router = Router(world.rosters, world.local, world.nodes, reach="device", patience_seconds=0.0)
    _, _, error = await collect(router, make_request(reach="market"))
    assert error is not None and error.code == "model_not_found"


async def test_an_unknown_model_is_not_found_at_once():
    world = World(FakeEngines(), patience=60.0)
    _, _, error = await world.ask(model="nothing")
    assert error is not None and (error.code, error.status, error.param) == ("model_not_found", 404, "model")


async def test_a_node_that_has_just_started_does_not_call_a_model_unknown():
    _, _, error = await World(settled=False).ask(model="nobody")
    assert error is not None and (error.code, error.status) == ("no_replica", 503)


@pytest.mark.parametrize("how", ["dead", "starting", "draining"])
async def test_a_known_model_that_nobody_can_serve_now_has_no_replica(how: str):
    world = World(FakeEngines(None, make_replica(state="starting" if how == "starting" else "ready")))
    load = Load(draining=True) if how == "draining" else None
    world.rosters.set(make_roster(world.member(node_id(1), alive=how != "dead", load=load)))
    _, _, error = await world.ask()
    assert error is not None and (error.code, error.status) == ("no_replica", 503)


async def test_what_the_model_cannot_do_is_named():
    world = World(FakeEngines())
    _, _, error = await world.ask(kind="embedding")
    assert error is not None and (error.code, error.status) == ("unsupported_capability", 400)
    assert "embedding" in error.detail


async def test_a_request_that_resumes_is_not_for_a_router():
    _, _, error = await World(FakeEngines()).ask(resume=TokenResume((1,)))
    assert error is not None and error.code == "internal"


async def test_a_broken_answer_goes_on_by_token_ids():
    world = World(FakeEngines(Score(5)), here=dying(3))
    pieces, done, _ = await world.ask()
    assert done == Score(5).done
    assert b"".join(piece.frames for piece in pieces) == Score(5).frames
    (resumed,) = world.nodes.requests
    assert isinstance(resumed.resume, TokenResume) and resumed.resume.ids == (1000, 1001)
    assert resumed.deadline <= 30.0
    assert world.router.stats().resumed == 1 and world.router.stats().retried == 1


async def test_an_answer_without_ids_goes_on_by_replay():
    world = World(FakeEngines(Score(5, with_ids=False)), here=dying(3, with_ids=False))
    pieces, done, _ = await world.ask()
    assert done is not None
    assert b"".join(piece.frames for piece in pieces) == Score(5, with_ids=False).frames
    (resumed,) = world.nodes.requests
    assert isinstance(resumed.resume, ReplayResume)


async def test_a_break_after_the_role_frame_is_replayed_whatever_the_engine():
    engines = FakeEngines(Score(5), groups=(3,))
    world = World(engines, here=dying(1))
    pieces, done, _ = await world.ask()
    assert done is not None
    assert b"".join(piece.frames for piece in pieces) == Score(5).frames
    assert [token for piece in pieces for token in piece.ids] == Score(5).ids


async def test_a_replica_that_dies_between_the_last_frame_and_done_is_replaced_unseen():
    world = World(FakeEngines(Score(2)), here=dying(4, tokens=2))
    pieces, done, error = await world.ask()
    assert error is None and done == Score(2).done
    assert b"".join(piece.frames for piece in pieces).count(b'"finish_reason":"stop"') == 1


async def test_the_replica_that_failed_is_not_asked_again():
    world = World(dying(2, 2, 2), FakeEngines(Score(5)))
    for _ in range(5):
        world.nodes.asked.clear()
        _, done, _ = await world.ask()
        assert done is not None
        assert len(world.nodes.asked) == len(set(world.nodes.asked))


async def test_only_a_replica_of_the_same_file_goes_on():
    other = FakeEngines(Score(5), make_replica(digest="sha256:" + "1" * 64))
    world = World(other, here=dying(3))
    pieces, _, error = await world.ask()
    assert len(pieces) == 3 and other.requests == []
    assert error is not None and error.code == "replica_lost"


async def test_without_anyone_left_the_stream_ends_with_a_lost_replica():
    _, _, error = await World(here=dying(3)).ask()
    assert error is not None and error.code == "replica_lost"


async def test_without_anything_delivered_it_ends_with_no_replica():
    _, _, error = await World(here=dying(0)).ask()
    assert error is not None and error.code == "no_replica" and "engine_failed" in error.detail


async def test_a_request_waits_for_a_replica_to_appear():
    world = World(FakeEngines(Score(3), make_replica(state="starting")), patience=30.0)
    asked = asyncio.create_task(world.ask())
    await settle()
    world.others[node_id(1)].loaded = (make_replica(),)
    world.rosters.set(make_roster(world.member(node_id(1), issued_at=2.0)))
    _, done, _ = await asyncio.wait_for(asked, 5)
    assert done is not None


async def test_a_broken_answer_goes_on_where_it_was_when_the_node_has_started_anew():
    world = World(dying(3), patience=30.0)
    asked = asyncio.create_task(world.ask())
    await settle()
    assert len(world.nodes.asked) == 1
    world.rosters.set(make_roster(world.member(node_id(1), issued_at=2.0)))
    pieces, done, _ = await asyncio.wait_for(asked, 5)
    assert done is not None and b"".join(piece.frames for piece in pieces) == Score(5).frames


async def test_the_only_replica_gets_a_second_chance():
    world = World(dying(3), patience=0.05)
    pieces, done, _ = await asyncio.wait_for(world.ask(), 5)
    assert done is not None and len(world.nodes.asked) == 2
    assert b"".join(piece.frames for piece in pieces) == Score(5).frames


async def test_there_is_no_third_chance():
    world = World(dying(0, 0, 0, 0), patience=0.05)
    _, _, error = await asyncio.wait_for(world.ask(), 5)
    assert error is not None and error.code == "no_replica"
    assert len(world.nodes.asked) == 2


async def test_busy_replicas_are_passed_over_and_the_smallest_wait_is_told():
    engines = [FakeEngines(Score(1), make_replica(slots=1)) for _ in range(2)]
    world = World(*engines, queue_limit=0, patience=60.0)
    for each in engines:
        each.gate.clear()
    running = [asyncio.create_task(world.ask()) for _ in range(2)]
    await settle()
    _, _, error = await world.ask()
    assert error is not None and (error.code, error.status) == ("overloaded", 503)
    assert error.retry_after is not None and 1 <= error.retry_after <= 60
    engines[0].gate.set()
    await settle()
    _, done, _ = await world.ask()
    assert done is not None
    engines[1].gate.set()
    await asyncio.gather(*running)


async def test_what_is_the_callers_fault_is_not_tried_elsewhere():
    first, second = FakeEngines(), FakeEngines()
    first.error = second.error = FelloeError("invalid_value", "temperature is too high", param="temperature")
    world = World(first, second)
    _, _, error = await world.ask()
    assert error is not None and error.code == "invalid_value" and error.param == "temperature"
    assert len(world.nodes.asked) == 1


async def test_a_prompt_too_long_here_is_tried_where_slots_are_longer():
    here = FakeEngines(None, make_replica(context=512))
    here.error = FelloeError("context_length_exceeded", "too long", param="messages")
    longer = FakeEngines(Score(2), make_replica(context=4096))
    world = World(FakeEngines(None, make_replica(context=512)), longer, here=here)
    _, done, _ = await world.ask()
    assert done is not None and len(longer.requests) == 1
    alone = World(FakeEngines(None, make_replica(context=512)), here=here, patience=60.0)
    _, _, error = await alone.ask()
    assert error is not None and error.code == "context_length_exceeded"


async def test_a_request_that_kills_every_engine_is_given_up():
    engines = [dying(1, 1, 1) for _ in range(8)]
    world = World(*engines)
    pieces, done, error = await world.ask()
    assert done is None and len(pieces) == 1
    assert error is not None and error.code == "engine_failed"
    assert len(world.nodes.asked) == 1 + MOST_BARREN_FAILURES


async def test_a_deadline_leaves_no_timer_behind(monkeypatch: pytest.MonkeyPatch):
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []
    call_at = loop.call_at

    def recording(*arguments: object, **options: object) -> asyncio.TimerHandle:
        timers.append(call_at(*arguments, **options))  # type: ignore[arg-type]
        return timers[-1]

    monkeypatch.setattr(loop, "call_at", recording)  # by way of which `call_later` goes, too
    await World(here=FakeEngines(Score(3))).ask()
    assert timers and all(timer.cancelled() for timer in timers)


async def test_a_deadline_ends_a_silent_answer():
    here = FakeEngines()
    here.gate.clear()
    world = World(here=here)
    _, _, error = await world.ask(deadline=0.01)
    assert error is not None and (error.code, error.status) == ("deadline_exceeded", 504)
    assert here.running == 0 and world.local.load() == Load(served={MODEL: 1})


async def test_a_deadline_ends_the_wait_for_a_replica():
    world = World(FakeEngines(None, make_replica(state="starting")), patience=60.0)
    _, _, error = await world.ask(deadline=0.01)
    assert error is not None and error.code == "deadline_exceeded"


async def test_a_deadline_that_passes_while_the_client_reads_spares_the_client():
    world = World(here=FakeEngines(Score(5)))
    reader = Reader(partial(world.router.answer, replace(make_request(), deadline=0.01)))
    await reader.next()
    await asyncio.sleep(0.02)  # the client's own work, which the deadline must not cancel
    with pytest.raises(FelloeError, match="in time"):
        await reader.next()


async def test_closing_the_answer_closes_the_engine_at_once():
    here = FakeEngines(Score(5))
    world = World(here=here)
    reader = Reader(partial(world.router.answer, make_request()))
    await reader.next()
    await reader.close()
    assert here.running == 0 and world.local.load() == Load(served={MODEL: 1})


async def test_what_the_client_fails_with_is_not_tried_elsewhere():
    async def late() -> None:
        raise FelloeError("replica_lost", "the client is gone")

    def at_once(piece: Piece) -> None:
        raise FelloeError("replica_lost", "the client is gone")

    def in_a_moment(piece: Piece) -> Awaitable[None]:
        return late()

    for deliver in (at_once, in_a_moment):
        world = World(FakeEngines(Score(5)), here=FakeEngines(Score(5)))
        with pytest.raises(FelloeError, match="the client is gone"):
            await world.router.answer(make_request(), deliver)
        assert world.nodes.asked == [] and world.here.running == 0


async def test_a_client_that_is_behind_at_the_end_is_waited_for():
    world = World(here=FakeEngines(Score(0, role_frame=False)))
    reader = Reader(partial(world.router.answer, make_request()))
    piece = await reader.next()
    assert b'"finish_reason":"stop"' in piece.frames
    await settle()
    assert not reader.answer.done()
    with pytest.raises(asyncio.InvalidStateError):
        reader.answer.result()
    await reader.close()
    assert world.local.load() == Load(served={MODEL: 1})


@pytest.mark.parametrize("after_the_deadline", [False, True])
async def test_a_cancellation_is_never_taken_for_a_passed_deadline(after_the_deadline: bool):
    here = FakeEngines(Score(5))
    here.gate.clear()
    asked = asyncio.create_task(World(here=here).ask(deadline=0.01))
    await settle()
    if after_the_deadline:
        asyncio.get_running_loop().call_later(0.015, asked.cancel)
    else:
        asked.cancel()
    time.sleep(0.03)  # the loop finds both due in the same turn
    await asyncio.wait([asked])
    assert asked.cancelled() and here.running == 0


async def test_frames_after_the_last_one_are_delivered_all_the_same():
    class Odd(Score):
        def pieces(self, request, groups):  # type: ignore[no-untyped-def]
            pieces = super().pieces(request, groups)
            last = pieces[-1]
            return [*pieces, Piece(last.number, (), b"data: x\n\n"), Piece(last.number, (), last.frames)]

    score = Odd(2)
    pieces, done, _ = await World(here=FakeEngines(score)).ask()
    assert done == score.done
    expected = score.frames + b"data: x\n\n" + score.events[-1][1]
    assert b"".join(piece.frames for piece in pieces) == expected


async def test_cancelling_a_waiting_client_closes_the_engine_at_once():
    there = FakeEngines(Score(5))
    there.gate.clear()
    world = World(there)
    asked = asyncio.create_task(world.ask())
    await settle()
    asked.cancel()
    await asyncio.wait([asked])
    assert asked.cancelled() and there.running == 0
    assert world.router._outstanding == {}  # pyright: ignore[reportPrivateUsage]


async def test_requests_spread_before_the_first_report_comes():
    engines = [FakeEngines(Score(1), make_replica(slots=2)) for _ in range(3)]
    for each in engines:
        each.gate.clear()
    world = World(*engines)
    asked = [asyncio.create_task(world.ask()) for _ in range(6)]
    await settle()
    assert [each.running for each in engines] == [2, 2, 2]
    for each in engines:
        each.gate.set()
    await asyncio.gather(*asked)


async def test_an_embedding_is_delivered_whole_or_not_at_all():
    class Embedding(Score):
        def pieces(self, request, groups):  # type: ignore[no-untyped-def]
            return [Piece(0, (), b'{"data":[')] if groups == (9,) else [Piece(0, (), b'{"data":[1]}')]

    replica = make_replica(capabilities=("embedding",))
    broken = FakeEngines(Embedding(0), replica, deaths=Deaths(Death(1)), groups=(9,))
    world = World(FakeEngines(Embedding(0), replica), here=broken)
    pieces, done, _ = await world.ask(kind="embedding")
    assert done is not None and [piece.frames for piece in pieces] == [b'{"data":[1]}']


async def test_gaps_are_counted():
    world = World(FakeEngines(Score(5)), here=dying(3))
    await world.ask()
    stats = world.router.stats()
    assert stats.resumed == 1 and len(stats.recent_gaps) == 1 and sum(stats.gap_buckets) == 1
    assert stats.broken == 0
    await World(here=dying(3)).ask()


def cut(*pieces: int, tokens: int = 5) -> FakeEngines:
    """A node to which the way breaks after so many pieces."""
    return FakeEngines(Score(tokens), deaths=Deaths(*(Death(count, "line_lost") for count in pieces)))


async def test_a_node_that_was_cut_off_while_it_answered_is_asked_again_at_once():
    world = World(cut(2, 2, 1), patience=30.0)
    pieces, done, error = await asyncio.wait_for(world.ask(), 1)
    assert error is None and done == Score(5).done
    assert b"".join(piece.frames for piece in pieces) == Score(5).frames
    assert len(world.nodes.asked) == 4


async def test_a_node_that_cannot_be_reached_rests_a_little_between_attempts():
    world = World(cut(0, 0, 0), patience=30.0)
    began = time.monotonic()
    _, done, _ = await asyncio.wait_for(world.ask(), 5)
    assert done is not None and len(world.nodes.asked) == 4
    assert 0.3 < time.monotonic() - began < 1.5


async def test_a_node_that_cannot_be_reached_is_asked_as_soon_as_it_says_something_new():
    world = World(cut(*[0] * 12), patience=30.0)
    asked = asyncio.create_task(world.ask())
    await asyncio.sleep(0.8)
    before = len(world.nodes.asked)
    world.nodes.nodes[node_id(1)] = Admission(FakeEngines(Score(5)))
    world.rosters.set(make_roster(world.member(node_id(1), issued_at=2.0)))
    _, done, _ = await asyncio.wait_for(asked, 0.2)
    assert done is not None and len(world.nodes.asked) == before + 1


async def test_while_no_node_can_be_reached_for_a_moment_a_request_waits():
    world = World(*(cut(*[0] * 6) for _ in range(4)), patience=30.0)
    _, done, _ = await asyncio.wait_for(world.ask(), 5)
    assert done is not None and len(world.nodes.asked) == 25


async def test_while_the_way_to_one_node_is_broken_another_goes_on():
    world = World(cut(*[0] * 12), FakeEngines(Score(5)), patience=30.0)
    for _ in range(5):
        _, done, _ = await asyncio.wait_for(world.ask(), 1)
        assert done is not None


async def test_clients_hear_of_a_lost_replica_and_not_of_lines():
    world = World(cut(*[0] * 40), patience=0.3)
    _, _, error = await asyncio.wait_for(world.ask(), 5)
    assert error is not None and error.code == "no_replica"
    world = World(cut(2, *[0] * 40), patience=0.3)
    _, _, error = await asyncio.wait_for(world.ask(), 5)
    assert error is not None and error.code == "replica_lost"


async def test_an_answer_from_elsewhere_may_leave_for_a_free_slot_here_and_each_slot_is_promised_once():
    there, here = FakeEngines(Score(5)), FakeEngines(Score(5), make_replica(slots=2))
    there.gate.clear()
    world = World(there, here=here)
    loaded, here.loaded = here.loaded, ()
    may_leave: list[Callable[[], bool]] = []
    asked: list[asyncio.Task[Outcome]] = []
    for _ in range(3):
        asked.append(asyncio.create_task(world.ask()))
        await settle()
        may_leave.append(world.nodes.can_leave)
    assert not any(each() for each in may_leave), "there is no replica here"
    here.loaded = loaded
    assert [each() for each in may_leave] == [True, True, False]
    there.gate.set()
    await asyncio.gather(*asked)
    assert world.router._promised == {}
