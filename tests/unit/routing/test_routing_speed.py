"""Replicas of different speed: measured where they run, and chosen so that the slow ones are not everybody's tail."""

import heapq
from collections.abc import Callable
from random import Random
from statistics import quantiles

import pytest
from msgspec.structs import replace

from felloe.domain.ids import NodeId
from felloe.domain.ports import Deliver
from felloe.domain.requests import Done, InferenceRequest, Piece, Usage
from felloe.domain.roster import Load, Replica
from felloe.routing import rules
from felloe.routing.admission import Admission
from felloe.routing.model_index import ModelIndex
from felloe.routing.pace import Pace
from felloe.routing.rules import Busy, Others, Wanted
from felloe.routing.targets import Target
from routing_fakes import HERE, MODEL, FakeEngines, Score, collect, make_member, make_replica, make_request, make_roster
from routing_fakes import node_id as node

WANTED = Wanted(MODEL, ("chat",))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedEngines(FakeEngines):
    """Makes a token in `seconds` after a prompt that takes `prompt_seconds`, by the test's clock."""

    def __init__(self, clock: Clock, seconds: float, *, prompt_seconds: float = 0.0, tokens: int = 40) -> None:
        super().__init__(Score(tokens))
        self.clock = clock
        self.seconds = seconds
        self.prompt_seconds = prompt_seconds

    async def answer(self, request: InferenceRequest, deliver: Deliver) -> Done:
        self.clock.now += self.prompt_seconds

        def take(piece: Piece) -> object:
            self.clock.now += self.seconds
            return deliver(piece)

        return await super().answer(request, take)  # type: ignore[arg-type]


def speeds(admission: Admission) -> list[float]:
    return [replica.speed for replica in admission.replicas()]


async def test_a_node_measures_the_tokens_a_second_of_an_answer_without_its_prompt():
    clock = Clock()
    admission = Admission(TimedEngines(clock, 0.02, prompt_seconds=9.0), clock=clock)
    for _ in range(3):
        assert speeds(admission) == [0.0], "one answer could be an exception"
        await collect(admission, make_request())
    assert speeds(admission) == [pytest.approx(50, rel=0.05)]
    found = admission.find(MODEL)
    assert found is not None and found.speed == speeds(admission)[0]


async def test_an_answer_that_its_reader_held_up_says_nothing_of_the_speed():
    clock = Clock()
    admission = Admission(TimedEngines(clock, 0.02), clock=clock)

    def deliver(piece: Piece) -> object:
        async def slowly() -> None:
            clock.now += 1.0

        return slowly()

    for _ in range(5):
        await admission.answer(make_request(), deliver)  # type: ignore[arg-type]
    assert speeds(admission) == [0.0]


async def test_a_speed_is_told_when_it_has_clearly_changed_and_not_for_every_answer():
    clock = Clock()
    engines = TimedEngines(clock, 0.02)
    admission = Admission(engines, clock=clock)
    told: list[float] = []
    admission.on_speed(lambda: told.extend(speeds(admission)))
    for seconds in (0.02, 0.021, 0.019, 0.022, 0.02):
        engines.seconds = seconds
        await collect(admission, make_request())
    assert len(told) == 1
    for _ in range(20):
        engines.seconds = 0.2
        await collect(admission, make_request())
    assert told[-1] == pytest.approx(5, rel=0.25) and len(told) < 10


async def test_another_file_under_the_same_name_is_measured_anew():
    clock = Clock()
    engines = TimedEngines(clock, 0.02)
    admission = Admission(engines, clock=clock)
    for _ in range(3):
        await collect(admission, make_request())
    assert speeds(admission) != [0.0]
    engines.loaded = (make_replica(digest="sha256:" + "1" * 64),)
    assert speeds(admission) == [0.0]


async def test_an_embedding_model_is_measured_by_what_it_reads():
    clock = Clock()
    engines = FakeEngines(None, make_replica(capabilities=("embedding",)))

    async def embed(request: InferenceRequest, deliver: Deliver) -> Done:
        clock.now += 0.5
        deliver(Piece(1, (), b"{}"))
        return Done(Usage(prompt=200), "")

    engines.answer = embed  # type: ignore[method-assign]
    admission = Admission(engines, clock=clock)
    for _ in range(3):
        await collect(admission, make_request(kind="embedding", body={"input": ["text"]}))
    assert speeds(admission) == [400.0]


def test_a_pace_needs_some_answers_of_some_length():
    pace = Pace()
    assert not any(pace.add(3, 0.1) or pace.add(100, 0.0) or pace.add(0, 1.0) for _ in range(20))
    assert not pace.add(100, 1.0) and not pace.add(100, 1.0) and pace.told == 0.0
    assert pace.add(100, 1.0) and pace.told == 100.0


def test_neither_a_slow_start_nor_a_burst_decides_a_pace():
    pace = Pace()
    for tokens, seconds in ((40, 10.0), (40, 0.4), (40, 0.000_01), (40, 0.4), (40, 0.4)):
        pace.add(tokens, seconds)
    assert pace.told == 100.0


def others(*replicas: tuple[float, int]) -> Others:
    """Nodes 1, 2, …: each with a replica of that speed, so many of its 4 slots taken."""
    members = [
        make_member(node(number), make_replica(slots=4, speed=speed), load=Load(active={MODEL: active}))
        for number, (speed, active) in enumerate(replicas, 1)
    ]
    roster = make_roster(*members)
    offers = ModelIndex(roster).get(MODEL)
    return Others(offers.ready, offers.free, roster.members, {})


def chosen(there: Others, here: tuple[Target, Busy] | None = None, seed: int = 0) -> NodeId:
    target = rules.choose(WANTED, here, there, lambda *_: False, Random(seed).random)
    assert target is not None
    return target.node


def test_a_busy_fast_card_is_asked_before_an_idle_slow_one():
    assert chosen(others((50, 3), (5, 0))) == node(1)


def test_a_short_queue_at_a_fast_card_is_better_than_a_slow_one():
    assert chosen(others((50, 6), (5, 0))) == node(1)


def test_a_long_queue_at_a_fast_card_is_not():
    assert chosen(others((50, 60), (5, 0))) == node(2)


def test_one_that_was_never_measured_is_tried_like_a_typical_one():
    assert chosen(others((50, 1), (0, 0))) == node(2)
    assert chosen(others((50, 0), (0, 1))) == node(1)


def local(speed: float, active: int) -> tuple[Target, Busy]:
    return Target(HERE, None, make_replica(slots=4, speed=speed)), Busy(active, 0)


def test_this_node_comes_first_while_it_has_a_free_slot_however_slow():
    assert chosen(others((50, 0)), local(5, 3)) == HERE


def test_a_fast_node_that_is_full_keeps_what_a_slow_one_would_finish_later():
    assert chosen(others((5, 0)), local(50, 5)) == HERE
    assert chosen(others((50, 0)), local(5, 5)) == node(1)


class Server:
    """A replica in the simulation: `slots` answers at once, each at `speed`; the rest wait in order."""

    def __init__(self, speed: float, slots: int) -> None:
        self.speed = speed
        self.free_at = [0.0] * slots
        self.ends: list[float] = []

    def busy(self, now: float) -> int:
        self.ends = [end for end in self.ends if end > now]
        return len(self.ends)

    def take(self, now: float, tokens: float) -> float:
        """When an answer of `tokens` that comes now is done."""
        start = max(now, heapq.heappop(self.free_at))
        heapq.heappush(self.free_at, start + tokens / self.speed)
        self.ends.append(start + tokens / self.speed)
        return self.ends[-1]


def response_times(servers: dict[NodeId, Server], told: Callable[[Server], Replica], rate: float) -> list[float]:
    """Seconds from question to end of 2,000 answers, asked at random times; loads are told as they are."""
    random = Random(3)
    members = {at: make_member(at, told(server)) for at, server in servers.items()}
    now, took = 0.0, list[float]()
    for _ in range(2000):
        now += random.expovariate(rate)
        seen = {at: replace(member, load=Load(active={MODEL: servers[at].busy(now)})) for at, member in members.items()}
        roster = make_roster(*seen.values())
        offers = ModelIndex(roster).get(MODEL)
        target = rules.choose(
            WANTED, None, Others(offers.ready, offers.free, roster.members, {}), lambda *_: False, random.random
        )
        assert target is not None
        took.append(servers[target.node].take(now, random.expovariate(1 / 100)) - now)
    return took


@pytest.mark.parametrize("utilisation", [0.3, 0.7])
def test_with_measured_speeds_the_slow_cards_are_not_the_tail(utilisation: float):
    """Two fast cards and four of a fifth of their speed: the slowest answers come clearly sooner than without."""

    def fleet() -> dict[NodeId, Server]:
        return {node(number): Server(50.0 if number <= 2 else 10.0, 2) for number in range(1, 7)}

    capacity = sum(server.speed * len(server.free_at) for server in fleet().values())
    rate = utilisation * capacity / 100
    with_speeds = response_times(fleet(), lambda server: make_replica(slots=2, speed=server.speed), rate)
    without = response_times(fleet(), lambda server: make_replica(slots=2), rate)
    p99, p99_without = quantiles(with_speeds, n=100)[-1], quantiles(without, n=100)[-1]
    assert p99 < 0.75 * p99_without
    assert sum(with_speeds) < 0.8 * sum(without)
