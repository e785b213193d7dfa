"""Leading by a lease: taken, renewed, given up, lost in time."""

import asyncio
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable

import pytest

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.host.clock import steady_seconds
from felloe.hubs.lease import Leadership
from felloe.hubs.lease_rules import Seen, free_at, lapses_at, renewal_seconds, see, taken
from felloe.hubs.records import LEASE, Lease, decode, encode
from hubs_fakes import FakeState, FakeStore, settle
from waiting import until

RANDOM = random.Random(1)
A, B = (NodeId(letter * 26) for letter in "ab")


class Hub:
    """One hub with its own copy of the state; `now` is shared."""

    now = 0.0

    def __init__(self, store: FakeStore, node: NodeId) -> None:
        self.state = FakeState(store)
        self.willing = True
        self.told: list[int | None] = []
        self.leadership = Leadership(
            self.state,
            node,
            clock=lambda: Hub.now,
            wants=lambda: self.willing,
            random=RANDOM.random,
            on_lead=self.told.append,
            on_lose=lambda: self.told.append(None),
        )

    async def step(self) -> float:
        return await self.leadership.step()

    @property
    def term(self) -> int | None:
        return self.leadership.term()


@pytest.fixture
def store() -> FakeStore:
    Hub.now = 1000.0
    return FakeStore()


async def test_the_first_hub_that_wants_to_leads_and_the_other_does_not(store: FakeStore) -> None:
    first, second = Hub(store, A), Hub(store, B)
    await first.step()
    await second.step()
    assert (first.term, second.term) == (1, None)
    assert second.leadership.leader() == A
    assert first.told == [1]


async def test_a_hub_that_does_not_want_to_lead_does_not(store: FakeStore) -> None:
    hub = Hub(store, A)
    hub.willing = False
    await hub.step()
    assert (hub.term, store.log) == (None, [])


async def test_a_holder_that_renews_leads_on_and_the_other_waits(store: FakeStore) -> None:
    first, second = Hub(store, A), Hub(store, B)
    for _ in range(60):
        await first.step()
        await second.step()
        Hub.now += 1.0
    assert (first.term, second.term) == (1, None)
    assert first.told == [1]


async def test_a_silent_holder_stops_before_the_next_begins(store: FakeStore) -> None:
    first, second = Hub(store, A), Hub(store, B)
    await first.step()
    first.state.reachable = False
    stopped = taken_over = 0.0
    for _ in range(400):
        if first.term is None and not stopped:
            stopped = Hub.now
        await second.step()
        if second.term is not None and not taken_over:
            taken_over = Hub.now
        Hub.now += 0.05
    assert 1000 < stopped < 1013
    assert stopped + 2.5 < taken_over <= 1017.1
    assert second.term == 2


async def test_an_outage_of_nine_seconds_is_survived_from_the_last_renewal_on(store: FakeStore) -> None:
    hub = Hub(store, A)
    await hub.step()
    Hub.now += 2.9
    store.writable = False
    for _ in range(9):
        Hub.now += 1.0
        assert hub.term == 1
        with pytest.raises(FelloeError, match="network_unreachable"):
            await hub.step()
    store.writable = True
    await hub.step()
    Hub.now += 11.9
    assert hub.term == 1
    Hub.now += 0.2
    assert hub.term is None


async def test_the_lease_counts_from_before_the_write_was_begun(store: FakeStore) -> None:
    hub = Hub(store, A)
    hub.state.held = True
    step = asyncio.create_task(hub.step())
    await settle()
    Hub.now += 7.0
    hub.state.release()
    await settle()
    Hub.now += 4.0
    hub.state.release()
    await step
    assert hub.term == 1
    Hub.now += 1.0
    assert hub.term is None, "12 seconds after it was begun"


async def test_a_leader_that_was_frozen_answers_none_before_it_does_anything(store: FakeStore) -> None:
    first, second = Hub(store, A), Hub(store, B)
    await first.step()
    Hub.now += 3600.0
    assert first.term is None
    await second.step()
    await first.step()
    assert (first.term, second.term) == (None, 2)
    with pytest.raises(FelloeError, match="not_leader"):
        await first.state.change("key", lambda _: b"late", term=1)
    await second.state.change("key", lambda _: b"right", term=2)


async def test_a_holder_that_lost_time_but_not_the_lease_leads_on_in_its_term(store: FakeStore) -> None:
    hub = Hub(store, A)
    await hub.step()
    Hub.now += 14.0
    assert hub.term is None
    await hub.step()
    assert hub.term == 1


async def test_a_lease_that_is_given_up_is_taken_at_once_and_not_by_who_gave_it_up(store: FakeStore) -> None:
    first, second = Hub(store, A), Hub(store, B)
    await first.step()
    await second.step()
    await first.leadership.resign()
    assert (first.term, first.told) == (None, [1, None])
    Hub.now += 0.3
    await first.step()
    await second.step()
    assert (first.term, second.term) == (None, 2)


async def test_who_gave_it_up_leads_again_when_nobody_else_does(store: FakeStore) -> None:
    hub = Hub(store, A)
    await hub.step()
    await hub.leadership.resign()
    Hub.now += 29.0
    await hub.step()
    assert hub.term is None
    Hub.now += 2.0
    await hub.step()
    assert hub.term == 2


async def test_a_hub_that_no_longer_wants_to_lead_gives_the_lease_up(store: FakeStore) -> None:
    hub = Hub(store, A)
    await hub.step()
    hub.willing = False
    await hub.step()
    assert hub.term is None
    assert decode(hub.state.get(LEASE) or b"", Lease).seconds == 0


async def test_giving_up_during_a_renewal_is_not_undone_by_it(store: FakeStore) -> None:
    hub = Hub(store, A)
    await hub.step()
    Hub.now += 4.0
    hub.state.held = True
    renewal = asyncio.create_task(hub.step())
    await settle()
    giving_up = asyncio.create_task(hub.leadership.resign())
    await settle()
    while not giving_up.done():
        assert hub.term is None
        hub.state.release()
        await settle()
    await renewal
    assert hub.term is None
    assert decode(hub.state.get(LEASE) or b"", Lease).seconds == 0


async def test_a_takeover_whose_answer_was_lost_is_not_claimed_later(store: FakeStore) -> None:
    hub = Hub(store, A)
    hub.state.lose_answers = 1
    hub.state.follows = False
    with pytest.raises(FelloeError, match="network_unreachable"):
        await hub.step()
    Hub.now += 10.0
    await hub.step()
    assert hub.term is None, "others have counted the lease for ten seconds already"
    Hub.now += 20.0
    await hub.step()
    assert hub.term == 2


async def test_a_hub_whose_copy_is_late_does_not_take_a_lease_that_was_renewed(store: FakeStore) -> None:
    first, second = Hub(store, A), Hub(store, B)
    await first.step()
    await second.step()
    second.state.follows = False
    for _ in range(20):
        Hub.now += 1.0
        await first.step()
    await second.step()
    assert (first.term, second.term) == (1, None)


async def test_two_processes_of_one_id_do_not_both_lead(store: FakeStore) -> None:
    first, copy = Hub(store, A), Hub(store, A)
    await first.step()
    await copy.step()
    assert (first.term, copy.term) == (1, None)


async def test_a_process_that_starts_again_waits_for_its_own_old_lease(store: FakeStore) -> None:
    await Hub(store, A).step()
    again = Hub(store, A)
    await again.step()
    assert again.term is None
    Hub.now += 17.0
    await again.step()
    assert again.term == 2


async def test_a_lease_that_claims_years_or_less_than_nothing_binds_nobody_longer_than_a_minute(
    store: FakeStore,
) -> None:
    hub = Hub(store, A)
    for seconds in (1e9, -1e9):
        value = encode(Lease(holder=B, term=len(store.log) + 5, beat=0, seconds=seconds))
        store.commit(len(store.log), LEASE, value)
        await hub.step()
        Hub.now += 62.0
        await hub.step()
        assert hub.term is not None


async def test_a_damaged_lease_makes_nobody_leader(store: FakeStore) -> None:
    hub = Hub(store, A)
    store.commit(0, LEASE, b'{"holder":1}')
    with pytest.raises(FelloeError, match="bad_state"):
        await hub.step()
    assert hub.term is None


async def test_it_runs_by_itself_and_tells_when_the_lead_begins_and_ends() -> None:
    store = FakeStore()
    told: list[int | None] = []
    state = FakeState(store)
    leadership = Leadership(
        state,
        A,
        clock=steady_seconds,
        wants=lambda: True,
        lease_seconds=0.5,
        on_lead=told.append,
        on_lose=lambda: told.append(None),
    )
    async with running(leadership.run):
        await until(lambda: leadership.term() == 1)
        await until(lambda: len(store.log) > 3)
        state.held = True
        await until(lambda: told == [1, None])
        assert leadership.term() is None
        state.held = False
        state.release()
        await until(lambda: told[-1] is not None)


class running:
    """Runs something beside the test."""

    def __init__(self, work: Callable[[], Awaitable[object]]) -> None:
        self.task = asyncio.ensure_future(work())

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


def test_what_is_seen_again_is_not_new() -> None:
    lease = Lease(holder=A, term=1, beat=1, seconds=15.0)
    seen = see(None, lease, 5.0)
    assert see(seen, lease, 9.0) == Seen(1, 1, 5.0)
    assert free_at(lease, seen) == 20.0
    assert taken(Lease(holder=A, term=1, beat=2, seconds=15.0), seen, B, 0, 15.0) is None


@pytest.mark.parametrize("seconds", [1.0, 15.0, 60.0])
def test_a_holder_stops_before_its_lease_ends_and_renews_well_before_it_stops(seconds: float) -> None:
    assert lapses_at(0.0, seconds) <= 0.8 * seconds
    assert renewal_seconds(seconds) < lapses_at(0.0, seconds) / 3


def test_the_steady_clock_goes_on() -> None:
    before = steady_seconds()
    subprocess.run([sys.executable, "-c", ""], check=True)
    assert before < steady_seconds() < before + 60
