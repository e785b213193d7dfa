"""Credentials renew themselves in good time, whatever fails on the way."""

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NetworkId, NodeId
from felloe.mesh.certificates import CLOCK_TOLERANCE
from felloe.mesh.credentials import Credential, CredentialKeeper, renewal_time, sign_nonce
from felloe.mesh.join_wire import leave_statement, renewal_statement


def credential(issued_at: int, seconds: int = 1000) -> Credential:
    return Credential(certificate="", user_token="", issued_at=issued_at, expires_at=issued_at + seconds)


class World:
    """A clock that moves only when somebody sleeps or it is set, and a hub that may fail."""

    def __init__(self) -> None:
        self.time = 0.0
        self.slept: list[float] = []
        self.saved: list[Credential] = []
        self.told: list[Credential] = []
        self.failures: list[Exception] = []
        self.tried_at: list[float] = []
        self.renewed = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.oversleep: dict[int, float] = {}
        """How far the clock goes on its own after so many sleeps: a machine that sleeps, a clock that is set."""

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds + self.oversleep.pop(len(self.slept), 0.0)
        await asyncio.sleep(0)

    async def renew(self) -> Credential:
        self.tried_at.append(self.time)
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        return credential(int(self.time))

    def hear(self, renewed: Credential) -> None:
        assert self.saved[-1] == renewed, "it is stored before anybody is told"
        self.told.append(renewed)
        self.renewed.set()

    def keeper(self) -> CredentialKeeper:
        keeper = CredentialKeeper(
            credential(0),
            renew=self.renew,
            save=self.saved.append,
            now=self.now,
            sleep=self.sleep,
            share=lambda: 0.5,
        )
        keeper.on_change(self.hear)
        return keeper


@pytest.fixture
async def world() -> AsyncIterator[World]:
    yield World()


async def until_renewed(world: World, keeper: CredentialKeeper) -> None:
    running = asyncio.create_task(keeper.run())
    await asyncio.wait_for(world.renewed.wait(), 5)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_it_renews_at_half_of_its_life(world: World) -> None:
    keeper = world.keeper()
    await until_renewed(world, keeper)
    assert world.tried_at == [pytest.approx(500)]
    assert world.told[0] == credential(500)
    assert keeper.current == world.told[-1]


async def test_it_looks_at_the_clock_every_ten_seconds(world: World) -> None:
    await until_renewed(world, world.keeper())
    assert max(world.slept) <= 10


async def test_a_machine_that_slept_for_three_days_renews_as_soon_as_it_wakes(world: World) -> None:
    world.oversleep = {4: 3 * 86400.0}
    await until_renewed(world, world.keeper())
    assert world.tried_at == [pytest.approx(3 * 86400 + 40)]


async def test_a_machine_that_wakes_does_not_wait_for_the_end_of_a_pause(world: World) -> None:
    world.failures = [OSError("no route to host")] * 9
    until_the_pause_of_640_seconds = 50 + 1 + 1 + 2 + 4 + 8 + 16 + 32
    world.oversleep = {until_the_pause_of_640_seconds + 5: 86400.0}
    await until_renewed(world, world.keeper())
    assert world.tried_at[8] == pytest.approx(world.tried_at[7] + 5 * 10 + 86400)


async def test_a_clock_that_jumps_forwards_is_believed(world: World) -> None:
    world.oversleep = {3: 400.0}
    await until_renewed(world, world.keeper())
    assert len(world.tried_at) == 1
    assert 500 <= world.tried_at[0] <= 530


async def test_a_clock_that_is_set_back_by_little_hurries_nobody(world: World) -> None:
    world.oversleep = {3: -CLOCK_TOLERANCE}
    await until_renewed(world, world.keeper())
    assert world.tried_at == [pytest.approx(500)]


async def test_a_clock_that_jumps_back_during_a_pause_does_not_make_it_days(world: World) -> None:
    keeper = CredentialKeeper(
        credential(-1000), renew=world.renew, save=world.saved.append, now=world.now, sleep=world.sleep
    )
    keeper.on_change(world.hear)
    world.failures = [FelloeError("network_unreachable", "off")] * 3
    world.oversleep = {2: -400.0}
    await until_renewed(world, keeper)
    assert sum(world.slept) < 600, "it waits for its half life by the clock as it is now, and no longer"


async def test_a_credential_from_the_future_is_replaced_at_once(world: World) -> None:
    keeper = CredentialKeeper(
        credential(86400), renew=world.renew, save=world.saved.append, now=world.now, sleep=world.sleep
    )
    keeper.on_change(world.hear)
    assert not keeper.holds_for(1), "others do not take it yet"
    await until_renewed(world, keeper)
    assert world.tried_at == [0.0]
    assert keeper.holds_for(1)


async def test_a_clock_that_was_ahead_for_a_while_leaves_no_credential_from_the_future(world: World) -> None:
    world.oversleep = {5: 86400.0, 7: -86400.0}
    keeper = world.keeper()
    running = asyncio.create_task(keeper.run())
    async with asyncio.timeout(5):
        while len(world.told) < 2:
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert world.tried_at == [pytest.approx(86450), pytest.approx(70)]


async def test_a_hub_whose_clock_is_ahead_is_not_asked_all_the_time(world: World) -> None:
    async def renew() -> Credential:
        world.tried_at.append(world.time)
        return credential(int(world.time) + 86400)

    keeper = CredentialKeeper(credential(0), renew=renew, save=world.saved.append, now=world.now, sleep=world.sleep)
    running = asyncio.create_task(keeper.run())
    async with asyncio.timeout(5):
        while world.time < 7200:
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert 5 < len(world.tried_at) < 25


async def test_a_refused_login_renews_within_seconds(world: World) -> None:
    keeper = world.keeper()
    world.time = 200.0
    keeper.note_refused()
    await until_renewed(world, keeper)
    assert 200 <= world.tried_at[0] <= 203


async def test_a_refusal_in_mid_sleep_is_heard(world: World) -> None:
    asleep, forever = asyncio.Event(), asyncio.Event()

    async def sleep(seconds: float) -> None:
        if seconds > 3:
            asleep.set()
            await forever.wait()

    keeper = CredentialKeeper(credential(0), renew=world.renew, save=world.saved.append, now=world.now, sleep=sleep)
    keeper.on_change(world.hear)
    running = asyncio.create_task(keeper.run())
    await asyncio.wait_for(asleep.wait(), 5)
    keeper.note_refused()
    await asyncio.wait_for(world.renewed.wait(), 5)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_refusals_that_go_on_ask_for_a_renewal_once_a_minute(world: World) -> None:
    keeper = world.keeper()

    async def refuse_always(seconds: float) -> None:
        keeper.note_refused()
        await World.sleep(world, seconds)

    keeper._sleep = refuse_always
    running = asyncio.create_task(keeper.run())
    async with asyncio.timeout(5):
        while len(world.tried_at) < 10:
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    gaps = [after - before for before, after in itertools.pairwise(world.tried_at)]
    assert min(gaps) >= 60
    assert max(gaps) <= 95


async def test_a_refusal_breaks_off_a_long_pause_after_failures(world: World) -> None:
    world.time = 500.0
    world.failures = [FelloeError("network_unreachable", "off")] * 8
    keeper = world.keeper()
    running = asyncio.create_task(keeper.run())
    async with asyncio.timeout(5):
        while len(world.tried_at) < 8 or world.time < world.tried_at[-1] + 60:
            await asyncio.sleep(0)
    before = world.time
    keeper.note_refused()
    await asyncio.wait_for(world.renewed.wait(), 5)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert world.tried_at[8] <= before + 34


async def test_a_listener_that_fails_neither_stops_the_others_nor_later_renewals(world: World) -> None:
    keeper = CredentialKeeper(credential(0), renew=world.renew, save=world.saved.append, now=world.now)
    keeper.on_change(lambda renewed: 1 / 0)
    keeper.on_change(world.hear)
    assert await keeper.renew_now() == world.told[0]


async def test_failures_are_tried_again_later_and_later(world: World) -> None:
    world.failures = [FelloeError("network_unreachable", "off")] * 9 + [OSError("reset")]
    keeper = world.keeper()
    await until_renewed(world, keeper)
    gaps = [after - before for before, after in itertools.pairwise(world.tried_at)]
    assert gaps == pytest.approx([5, 10, 20, 40, 80, 160, 320, 640, 900, 900])
    assert keeper.current.issued_at > 500


async def test_many_that_ask_at_once_cause_one_renewal(world: World) -> None:
    world.gate.clear()
    keeper = world.keeper()
    asking = [asyncio.create_task(keeper.renew_now()) for _ in range(5)]
    await asyncio.sleep(0)
    world.gate.set()
    results = await asyncio.gather(*asking)
    assert len(world.tried_at) == 1
    assert len(set(map(id, results))) == 1
    assert len(world.told) == 1


async def test_what_cannot_be_stored_is_not_used(world: World) -> None:
    def full(renewed: Credential) -> None:
        raise FelloeError("disk_full", "no room")

    keeper = CredentialKeeper(credential(0), renew=world.renew, save=full, now=world.now)
    with pytest.raises(FelloeError, match="disk_full"):
        await keeper.renew_now()
    assert keeper.current == credential(0)


@settings(deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 10**6))
def test_renewal_falls_between_45_and_55_hundredths(share: float, seconds: int) -> None:
    at = renewal_time(credential(100, seconds), share)
    assert 0.4499 * seconds <= at - 100 <= 0.5501 * seconds


def test_only_what_looks_like_a_nonce_is_signed() -> None:
    key = Ed25519PrivateKey.generate()
    key.public_key().verify(sign_nonce(key, b"vCT5H2H6EcvG6VU"), b"vCT5H2H6EcvG6VU")
    for trick in (b"", b"short", b"a" * 33, b"with space here", b"\x81\xa2id" * 4, b"line\nline-line-line"):
        with pytest.raises(FelloeError):
            sign_nonce(key, trick)
    with pytest.raises(FelloeError):
        # A server may not have a renewal signed as a nonce.
        sign_nonce(key, renewal_statement(NetworkId("n"), NodeId("i"), NodeId("h"), bytes(4), "1", ()))
    with pytest.raises(FelloeError):
        sign_nonce(key, leave_statement(NetworkId("n"), NodeId("i"), NodeId("h"), bytes(4)))
