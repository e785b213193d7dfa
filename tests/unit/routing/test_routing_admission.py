"""Slots, the queue in front of them, and who leaves it when."""

import asyncio
from functools import partial

import pytest
from msgspec.structs import replace

from felloe.domain.ids import ModelName
from felloe.domain.requests import TokenResume
from felloe.domain.roster import Load
from felloe.routing.admission import Admission
from routing_fakes import (
    MODEL,
    Death,
    Deaths,
    FakeEngines,
    Outcome,
    Reader,
    Score,
    collect,
    gather,
    make_replica,
    make_request,
    settle,
)


def ask(admission: Admission, asker: str = "", deadline: float = 30.0, resumed: bool = False) -> asyncio.Task[Outcome]:
    request = make_request(deadline=deadline)
    if resumed:
        request = replace(request, resume=TokenResume(()))
    return asyncio.create_task(gather(lambda deliver: admission.answer(request, deliver, asker)))


async def test_a_request_with_a_free_slot_is_answered_at_once():
    admission = Admission(FakeEngines(Score(3)))
    pieces, done, error = await ask(admission)
    assert error is None and done == Score(3).done
    assert b"".join(piece.frames for piece in pieces) == Score(3).frames


async def test_no_more_run_than_there_are_slots():
    engines = FakeEngines(Score(3), make_replica(slots=2))
    engines.gate.clear()
    admission = Admission(engines)
    asked = [ask(admission) for _ in range(5)]
    await settle()
    assert engines.running == 2
    assert admission.load() == Load(active={MODEL: 2}, waiting={MODEL: 3}, served={MODEL: 2})
    engines.gate.set()
    assert all(done is not None for _, done, _ in await asyncio.gather(*asked))
    assert admission.load() == Load(served={MODEL: 5})


async def test_beyond_the_limit_a_request_is_told_when_to_come_again():
    engines = FakeEngines(Score(1), make_replica(slots=1))
    engines.gate.clear()
    admission = Admission(engines, queue_limit=2)
    asked = [ask(admission) for _ in range(3)]
    await settle()
    _, _, error = await ask(admission)
    assert error is not None and error.code == "overloaded"
    assert error.retry_after is not None and error.retry_after >= 1
    assert admission.counts()[MODEL].refused == 1
    engines.gate.set()
    await asyncio.gather(*asked)


async def test_a_resumed_request_goes_ahead_and_beyond_the_limit():
    engines = FakeEngines(Score(1), make_replica(slots=1))
    engines.gate.clear()
    admission = Admission(engines, queue_limit=1)
    order: list[str] = []
    first = ask(admission)
    await settle()
    waiting = ask(admission, "x")
    await settle()
    resumed = ask(admission, "y", resumed=True)
    await settle()
    waiting.add_done_callback(lambda _: order.append("waiting"))
    resumed.add_done_callback(lambda _: order.append("resumed"))
    engines.gate.set()
    await asyncio.gather(first, waiting, resumed)
    await settle()
    assert order == ["resumed", "waiting"]


async def test_askers_take_turns():
    engines = FakeEngines(Score(1), make_replica(slots=1))
    engines.gate.clear()
    admission = Admission(engines)
    order: list[str] = []
    running = ask(admission)
    await settle()
    asked: list[asyncio.Task[Outcome]] = []
    for asker in ("greedy", "greedy", "greedy", "modest"):
        task = ask(admission, asker)
        task.add_done_callback(lambda _, asker=asker: order.append(asker))
        asked.append(task)
        await settle()
    engines.gate.set()
    await asyncio.gather(running, *asked)
    await settle()
    assert order == ["greedy", "modest", "greedy", "greedy"]


async def test_an_asker_that_fills_the_queue_makes_room_for_others_but_not_for_its_own():
    engines = FakeEngines(Score(1), make_replica(slots=1))
    engines.gate.clear()
    admission = Admission(engines, queue_limit=4)
    running = ask(admission)
    await settle()
    greedy = [ask(admission, "greedy") for _ in range(4)]
    await settle()
    _, _, error = await ask(admission, "greedy")
    assert error is not None and error.code == "overloaded"
    modest = [ask(admission, "modest") for _ in range(2)]
    await settle()
    displaced = [task.result()[2] for task in greedy if task.done()]
    assert [each.code for each in displaced if each is not None] == ["overloaded", "overloaded"]
    assert all(each is not None and each.retry_after is not None for each in displaced)
    _, _, error = await ask(admission, "modest")
    assert error is not None and error.code == "overloaded", "both have the same share now"
    assert admission.busy(MODEL).waiting == 4
    engines.gate.set()
    outcomes = await asyncio.gather(running, *greedy, *modest)
    assert [done is not None for _, done, _ in outcomes] == [True, True, True, False, False, True, True]


async def test_a_deadline_that_passes_in_the_queue_is_told():
    engines = FakeEngines(Score(1), make_replica(slots=1))
    engines.gate.clear()
    admission = Admission(engines)
    running = ask(admission)
    await settle()
    _, _, error = await ask(admission, deadline=0.01)
    assert error is not None and error.code == "deadline_exceeded"
    assert admission.load().waiting == {}
    engines.gate.set()
    await running


async def test_whoever_is_gone_leaves_the_queue_at_once():
    engines = FakeEngines(Score(1), make_replica(slots=1))
    engines.gate.clear()
    admission = Admission(engines)
    running = ask(admission)
    await settle()
    gone = ask(admission)
    await settle()
    gone.cancel()
    await asyncio.wait([gone])
    assert admission.load().waiting == {}
    engines.gate.set()
    await running
    assert len(engines.requests) == 1


async def test_cancelling_the_answer_frees_its_slot_in_the_same_turn():
    engines = FakeEngines(Score(5), make_replica(slots=1))
    admission = Admission(engines)
    reader = Reader(partial(admission.answer, make_request()))
    await reader.next()
    assert admission.busy(MODEL).active == 1
    await reader.close()
    assert admission.busy(MODEL).active == 0
    assert engines.running == 0
    assert admission.counts()[MODEL].cancelled == 1


async def test_a_slot_given_to_someone_who_was_just_cancelled_goes_on_to_the_next():
    engines = FakeEngines(Score(5), make_replica(slots=1))
    admission = Admission(engines)
    holder = Reader(partial(admission.answer, make_request()))
    await holder.next()
    unlucky, lucky = ask(admission), ask(admission)
    await settle()
    cancellations = [unlucky.cancel]

    def cancel_once() -> None:
        if cancellations:
            cancellations.pop()()

    # Told in the very turn in which the slot goes to the first in the queue, whose task has not run yet.
    admission.on_change(cancel_once)
    await holder.close()
    await asyncio.wait([unlucky])
    assert unlucky.cancelled()
    _, done, _ = await lucky
    assert done is not None
    assert len(engines.requests) == 2, "the unlucky one never came to the engine"
    assert admission.load() == Load(served={MODEL: 3})


async def test_a_model_that_is_not_here_is_not_found_and_one_that_is_not_ready_is_named_so():
    admission = Admission(FakeEngines(Score(1), make_replica(state="starting")))
    _, _, error = await ask(admission)
    assert error is not None and error.code == "no_replica"
    _, _, error = await collect(admission, make_request(model="nothing"))
    assert error is not None and error.code == "model_not_found"
    assert ModelName("nothing") not in admission.counts(), "a name that a client made up is no label"


async def test_when_the_replica_goes_away_the_queue_is_sent_elsewhere():
    engines = FakeEngines(Score(1), make_replica(slots=1), deaths=Deaths(Death(1)))
    engines.gate.clear()
    admission = Admission(engines)
    running, waiting = ask(admission), ask(admission)
    await settle()
    engines.loaded = (make_replica(state="failed"),)
    engines.gate.set()
    _, _, first = await running
    _, _, second = await waiting
    assert first is not None and first.code == "engine_failed"
    assert second is not None and second.code == "no_replica"
    assert admission.counts()[MODEL].failed == 1


async def test_more_slots_let_more_in_when_told():
    engines = FakeEngines(Score(1), make_replica(slots=1))
    engines.gate.clear()
    admission = Admission(engines)
    asked = [ask(admission) for _ in range(3)]
    await settle()
    engines.loaded = (make_replica(slots=3),)
    admission.replicas_changed()
    await settle()
    assert engines.running == 3
    engines.gate.set()
    await asyncio.gather(*asked)


async def test_draining_refuses_what_is_new_and_what_waits_and_lets_end_what_runs():
    engines = FakeEngines(Score(1), make_replica(slots=1))
    engines.gate.clear()
    admission = Admission(engines)
    running, waiting = ask(admission), ask(admission)
    await settle()
    drained = asyncio.create_task(admission.drain())
    _, _, refused = await waiting
    _, _, new = await ask(admission)
    assert refused is not None and refused.code == "draining"
    assert new is not None and new.code == "draining"
    assert admission.find(MODEL) is None
    assert admission.load().draining and not drained.done()
    engines.gate.set()
    _, done, _ = await running
    assert done is not None
    await drained


async def test_draining_an_idle_node_takes_no_time():
    await Admission(FakeEngines()).drain()


async def test_changes_are_told():
    admission = Admission(FakeEngines(Score(1)))
    seen: list[Load] = []
    admission.on_change(lambda: seen.append(admission.load()))
    await ask(admission)
    assert seen == [Load(active={MODEL: 1}, served={MODEL: 1}), Load(served={MODEL: 1})]


async def test_tokens_are_counted_without_what_came_from_elsewhere():
    admission = Admission(FakeEngines(Score(10)))
    request = replace(make_request(), resume=TokenResume(tuple(range(1000, 1004))))
    await collect(admission, request)
    counts = admission.counts()[MODEL]
    assert (counts.answered, counts.prompt_tokens, counts.completion_tokens) == (1, 7, 7)


async def test_an_engine_that_stops_in_the_middle_has_failed():
    admission = Admission(FakeEngines(Score(3), deaths=Deaths(Death(2, ""))))
    pieces, done, error = await ask(admission)
    assert len(pieces) == 2 and done is None
    assert error is not None and error.code == "engine_failed"
    assert admission.counts()[MODEL].failed == 1


async def test_an_unexpected_error_frees_the_slot():
    engines = FakeEngines(Score(3))
    engines.error = RuntimeError("a bug")
    admission = Admission(engines)
    with pytest.raises(RuntimeError):
        await ask(admission)
    assert admission.load() == Load(served={MODEL: 1})
