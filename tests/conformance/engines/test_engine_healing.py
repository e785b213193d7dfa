"""Real engine children that are killed, frozen and outgrow their memory: they heal, or are given up with the reason."""

import asyncio
import contextlib
import errno
import os
import re
import signal
import socket
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine_house import MODEL_FILE, TINY, Answering, Subject, tiny_model
from felloe.domain.errors import FelloeError
from felloe.engines.llama_replica import LlamaReplica
from felloe.engines.options import EngineOptions
from felloe.engines.rules import RestartPolicy
from felloe.engines.service import Engines
from waiting import until

MIB = 1024 * 1024
LONG: dict[str, Any] = {"prompt": "a", "max_tokens": 1000, "ignore_eos": True}
PATIENT: dict[str, Any] = {"first_delay": 0.01, "longest_delay": 0.02, "crashes_allowed": 50}
ATTENTIVE: dict[str, Any] = {**PATIENT, "probe_every": 0.05, "probe_seconds": 0.1}

Make = Callable[..., Engines]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncGenerator[Make, None]:
    made: list[Engines] = []

    def make(**policy: Any) -> Engines:
        made.append(
            Engines(
                state_folder=tmp_path / "state",
                log_folder=tmp_path / "logs",
                clock=time.monotonic,
                policy=RestartPolicy(**{**PATIENT, **policy}),
            )
        )
        return made[-1]

    yield make
    for engines in made:
        await engines.close()


async def load(engines: Engines, *, forgive: bool = True, **options: Any) -> Subject:
    chosen = EngineOptions(**{"context": 1024, "threads": 1, **options})
    await engines.load(tiny_model(), MODEL_FILE, chosen, forgive=forgive)
    return Subject(engines, tells_ids=True)


def replica(engines: Engines) -> LlamaReplica:
    engine = vars(engines)["_served"][TINY].engine
    assert isinstance(engine, LlamaReplica)
    return engine


def process_of(engines: Engines) -> int:
    found = replica(engines).supervisor.process_id
    assert found is not None
    return found


def state(engines: Engines) -> str:
    return engines.replicas()[0].state


async def ready(engines: Engines) -> None:
    await until(lambda: engines.find(TINY) is not None)


async def crash(engines: Engines, number: int = signal.SIGKILL) -> None:
    """Kill the child and wait until that is noticed."""
    os.kill(process_of(engines), number)
    await until(lambda: engines.find(TINY) is None)


async def replaced(engines: Engines, before: int) -> None:
    supervisor = replica(engines).supervisor
    await until(lambda: supervisor.state == "ready" and supervisor.process_id != before)


async def lost(answering: Answering) -> FelloeError:
    with pytest.raises(FelloeError) as caught:
        await answering.task
    return caught.value


async def test_a_model_that_keeps_killing_its_engine_is_in_quarantine_and_says_why(make: Make) -> None:
    engines = make(crashes_allowed=2)
    await load(engines)
    assert engines.problems() == {}
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT):
        await ready(engines)
        await crash(engines, number)
        await until(lambda: TINY in engines.problems())
    await until(lambda: state(engines) == "failed")
    problem = engines.problems()[TINY]
    assert "crashed 3 times within 10 minutes" in problem
    assert "SIGABRT" in problem
    assert re.search(r"at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", problem)


async def test_quarantine_outlives_the_node_until_the_owner_loads_the_model_again(make: Make) -> None:
    first = make(crashes_allowed=0)
    await load(first)
    await crash(first)
    await until(lambda: state(first) == "failed")
    told = first.problems()
    await first.close()
    second = make(crashes_allowed=0)
    await load(second, forgive=False)
    assert state(second) == "failed"
    assert replica(second).supervisor.process_id is None
    assert second.problems() == told
    assert TINY in told
    await load(second)  # what was given up is replaced
    assert state(second) == "ready"
    assert second.problems() == {}
    await second.close()
    third = make(crashes_allowed=0)
    await load(third, forgive=False)
    assert state(third) == "ready"


async def test_unloading_forgives_too(make: Make) -> None:
    engines = make(crashes_allowed=0)
    await load(engines)
    await crash(engines)
    await until(lambda: state(engines) == "failed")
    await engines.unload(TINY, 0)
    await load(engines, forgive=False)
    assert state(engines) == "ready"


async def test_crashes_before_the_node_started_count(make: Make) -> None:
    first = make(crashes_allowed=2)
    await load(first)
    for _ in range(2):
        await ready(first)
        await crash(first)
    await ready(first)
    await first.close()
    second = make(crashes_allowed=2)
    await load(second, forgive=False)
    assert state(second) == "ready"
    await crash(second)
    await until(lambda: state(second) == "failed")


async def test_a_model_file_that_was_damaged_meanwhile_is_given_up_at_once(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(MODEL_FILE.read_bytes())
    engines = make()
    await engines.load(tiny_model(), path, EngineOptions(context=512, threads=1))
    path.unlink()
    path.write_bytes(MODEL_FILE.read_bytes()[:100_000])
    await crash(engines)
    await until(lambda: state(engines) == "failed")
    assert "not within the file bounds" in engines.problems()[TINY]


async def test_a_frozen_engine_loses_its_streams_and_is_started_again(make: Make) -> None:
    engines = make(**ATTENTIVE, deaf_after=0.5)
    subject = await load(engines)
    frozen = process_of(engines)
    answering = Answering(engines, subject.request("completion", **LONG))
    await answering.until_pieces(1)
    os.kill(frozen, signal.SIGSTOP)
    assert (await lost(answering)).code == "replica_lost"
    await replaced(engines, frozen)
    assert not psutil.pid_exists(frozen)
    assert (await subject.ask("completion", prompt="a", max_tokens=3)).pieces


async def test_an_engine_that_works_hard_is_left_alone(make: Make) -> None:
    engines = make(**{**ATTENTIVE, "probe_every": 0.01}, deaf_after=1.0, hung_after=1.0)
    subject = await load(engines, slots=2)
    before = process_of(engines)
    asking = [subject.ask("completion", prompt="x = 1\n" * 150, max_tokens=150, ignore_eos=True) for _ in range(2)]
    await asyncio.gather(*asking)
    assert process_of(engines) == before


async def test_a_freeze_of_the_whole_machine_is_no_hang(make: Make) -> None:
    engines = make(**ATTENTIVE, deaf_after=0.5, late_after=0.3)
    subject = await load(engines)
    before = process_of(engines)
    answering = Answering(engines, subject.request("completion", **LONG))
    await answering.until_pieces(1)
    os.kill(before, signal.SIGSTOP)
    time.sleep(1.5)  # this process sleeps as well
    os.kill(before, signal.SIGCONT)
    await answering.until_pieces(len(answering.pieces) + 100)
    await answering.cancel()
    assert process_of(engines) == before


async def test_an_idle_engine_that_grew_too_large_is_started_again_at_once(make: Make) -> None:
    engines = make(probe_every=0.05, memory_every=0.1)
    states: list[str] = []
    await load(engines, memory_limit=1)
    engines.on_change(lambda: states.append(state(engines) if engines.replicas() else "gone"))
    before = process_of(engines)
    await until(lambda: states[:3] == ["draining", "starting", "ready"])
    assert not psutil.pid_exists(before)


async def test_an_engine_that_grew_too_large_finishes_its_answers_and_takes_no_new_ones(make: Make) -> None:
    engines = make(probe_every=0.05, memory_every=0.5)
    subject = await load(engines, memory_limit=1)
    before = process_of(engines)
    request = subject.request("completion", prompt="a", max_tokens=900, ignore_eos=True)
    answering = Answering(engines, request)
    await until(lambda: state(engines) == "draining")
    assert engines.find(TINY) is None
    with pytest.raises(FelloeError) as caught:
        await subject.ask("completion", prompt="a", max_tokens=1)
    assert caught.value.code == "draining"
    assert process_of(engines) == before
    assert (await answering.task).finish_reason == "length"
    await replaced(engines, before)


async def test_answers_that_take_too_long_to_drain_go_on_elsewhere(make: Make) -> None:
    engines = make(probe_every=0.05, memory_every=0.3, drain_limit=0.05)
    subject = await load(engines, memory_limit=1)
    assert (await lost(Answering(engines, subject.request("completion", **LONG)))).code == "replica_lost"


async def test_a_restart_for_its_size_is_no_crash(make: Make) -> None:
    engines = make(probe_every=0.05, memory_every=0.1, crashes_allowed=0)
    await load(engines, memory_limit=1)
    before = process_of(engines)
    await replaced(engines, before)
    assert engines.problems() == {}


async def test_closing_while_an_engine_is_put_away_leaves_no_process(make: Make) -> None:
    engines = make(probe_every=0.05, memory_every=0.1)
    putting_away = asyncio.Event()
    await load(engines, memory_limit=1)
    before = process_of(engines)
    engines.on_change(lambda: putting_away.set() if engines.replicas() and state(engines) == "starting" else None)
    await putting_away.wait()
    assert psutil.pid_exists(before)
    await engines.close()
    assert not psutil.pid_exists(before)


async def test_an_engine_is_weighed_without_the_model_file(make: Make) -> None:
    engines = make()
    await load(engines)
    child = vars(replica(engines).supervisor)["_child"]
    assert 10 * MIB < child.memory() < 500 * MIB


async def test_a_request_that_was_there_at_two_crashes_is_not_tried_again_and_others_are(make: Make) -> None:
    engines = make()
    subject = await load(engines, slots=1)
    bad = subject.request("completion", prompt="the bad one", max_tokens=3)
    for _ in range(2):
        running = Answering(engines, subject.request("completion", **LONG))
        await running.until_pieces(1)
        pid = process_of(engines)
        waiting = Answering(engines, bad)  # it waits in the engine for the only slot
        await _has_two_requests(engines)
        os.kill(pid, signal.SIGABRT)
        assert (await lost(running)).code == "replica_lost"
        assert (await lost(waiting)).code == "replica_lost"
        await replaced(engines, pid)
    before = process_of(engines)
    error = await lost(Answering(engines, bad))
    assert error.code == "engine_failed"
    assert "2 times" in error.detail
    assert process_of(engines) == before
    running = Answering(engines, subject.request("completion", **LONG))
    await running.until_pieces(1)
    await running.cancel()


async def _has_two_requests(engines: Engines) -> None:
    client = await replica(engines).supervisor.client(1)
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(TimeoutError):
                with await client.request("GET", "/metrics") as exchange:
                    text = (await exchange.read_all()).decode()
                busy = re.findall(r"^llamacpp:requests_(?:processing|deferred) (\d+)", text, re.M)
                if sum(map(int, busy)) == 2:
                    return


def refuses(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == errno.ECONNREFUSED


async def test_a_request_that_the_dead_engine_never_got_waits_for_the_next_one(make: Make, tmp_path: Path) -> None:
    engines = make()
    subject = await load(engines)
    (path,) = (tmp_path / "state" / "engines").glob("*.sock")
    os.kill(process_of(engines), signal.SIGKILL)
    while not refuses(path):  # without a turn of the event loop, so that nobody has noticed the death yet
        pass
    answer = await subject.ask("completion", prompt="a", max_tokens=3)
    assert answer.pieces


async def test_a_request_that_the_engine_got_is_not_given_to_its_next_life(make: Make) -> None:
    engines = make()
    subject = await load(engines, slots=1)
    running = Answering(engines, subject.request("completion", **LONG))
    await running.until_pieces(1)
    waiting = Answering(engines, subject.request("completion", prompt="b", max_tokens=3))
    await _has_two_requests(engines)
    os.kill(process_of(engines), signal.SIGSEGV)
    assert (await lost(waiting)).code == "replica_lost"
    assert waiting.pieces == []
    assert (await lost(running)).code == "replica_lost"


async def test_nothing_that_was_asked_stands_in_the_reason_or_the_file(make: Make, tmp_path: Path) -> None:
    engines = make(crashes_allowed=0)
    subject = await load(engines)
    secret = "zebra-quartz-sphinx"
    running = Answering(engines, subject.request("completion", **{**LONG, "prompt": secret}))
    await running.until_pieces(1)
    await crash(engines, signal.SIGABRT)
    await lost(running)
    await until(lambda: state(engines) == "failed")
    await engines.close()
    assert secret not in str(engines.problems())
    kept = (tmp_path / "state" / "engine-crashes.json").read_text()
    assert "SIGABRT" in kept
    assert secret not in kept
