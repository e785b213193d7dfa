"""Credentials renew themselves in good time, whatever fails on the way."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from felloe.domain.errors import FelloeError
from felloe.mesh.credentials import Credential, CredentialKeeper, renewal_time, sign_nonce
from felloe.mesh.join_wire import renewal_statement


def credential(issued_at: int, seconds: int = 1000) -> Credential:
    return Credential(certificate="", user_token="", issued_at=issued_at, expires_at=issued_at + seconds)


class World:
    """A clock that moves only when somebody sleeps, and a hub that may fail."""

    def __init__(self) -> None:
        self.time = 0.0
        self.slept: list[float] = []
        self.saved: list[Credential] = []
        self.told: list[Credential] = []
        self.failures: list[Exception] = []
        self.renewed = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.renewals = 0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)

    async def renew(self) -> Credential:
        self.renewals += 1
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
    assert world.slept[0] == pytest.approx(500)
    assert world.told[0] == credential(500)
    assert keeper.current == world.told[-1]


async def test_a_listener_that_fails_neither_stops_the_others_nor_later_renewals(world: World) -> None:
    keeper = CredentialKeeper(credential(0), renew=world.renew, save=world.saved.append, now=world.now)
    keeper.on_change(lambda renewed: 1 / 0)
    keeper.on_change(world.hear)
    assert await keeper.renew_now() == world.told[0]


async def test_failures_are_tried_again_later_and_later(world: World) -> None:
    world.failures = [FelloeError("network_unreachable", "off")] * 9 + [OSError("reset")]
    keeper = world.keeper()
    await until_renewed(world, keeper)
    retries = world.slept[1:11]
    assert retries == [5, 10, 20, 40, 80, 160, 320, 640, 900, 900]
    assert keeper.current.issued_at > 500


async def test_many_that_ask_at_once_cause_one_renewal(world: World) -> None:
    world.gate.clear()
    keeper = world.keeper()
    asking = [asyncio.create_task(keeper.renew_now()) for _ in range(5)]
    await asyncio.sleep(0)
    world.gate.set()
    results = await asyncio.gather(*asking)
    assert world.renewals == 1
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
        sign_nonce(key, renewal_statement("n", "i", bytes(4)))  # a server may not have a renewal signed as a nonce
