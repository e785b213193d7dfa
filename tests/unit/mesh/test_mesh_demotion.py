"""A hub that was demoted: what it held of a hub's rights ends at every message server, and it goes on as a spoke."""

import asyncio
import time

import pytest
from mesh_network import Member, Network

from felloe.domain.errors import FelloeError
from felloe.hubs.members import MemberBook
from felloe.hubs.records import LEASE, Lease, encode
from felloe.mesh.connection import Connection
from felloe.mesh.credentials import Credential, CredentialKeeper
from felloe.mesh.nats_jwt import read_token
from felloe.mesh.permissions import account_update
from hubs_fakes import FakeState, FakeStore


class House:
    """A real message server, the book of members behind it, and a hub that is to be demoted."""

    def __init__(self, network: Network, system: Connection) -> None:
        self.network = network
        self.system = system
        self.store = FakeStore()
        self.book = MemberBook(FakeState(self.store))
        self.former = network.member("hub")

    async def open(self) -> None:
        await self.book.add(self.former.public_key, "attic", "hub", time.time())
        self.store.commit(1, LEASE, encode(Lease(holder=self.network.hub.id, term=1, beat=0, seconds=15)))

    async def demote(self, now: float) -> None:
        """As the leader does it, and as each hub then tells its message server."""
        await self.book.set_role(self.former.id, "spoke", now)
        await self.book.end_hub(self.former.id, now, term=1)
        tokens = self.network.authority.account_tokens(time.time(), self.book.revocations(time.time()))
        for account, token in tokens.items():
            answer = await self.system.request(account_update(account), token.encode(), timeout=5.0)
            assert b'"error"' not in answer

    def renewed(self) -> Credential:
        """What a hub gives it."""
        listed = self.book.find(self.former.id)
        assert listed is not None
        return self.network.authority.issue(listed.public_key, listed.role, time.time(), after=listed.demoted_at)


@pytest.fixture
async def house(network: Network) -> House:
    # A server takes no token for an account that nobody uses.
    await network.connect(network.hub)
    house = House(network, await network.connect(network.hub, system=True))
    await house.open()
    return house


async def is_let_in(network: Network, member: Member, *, system: bool = False) -> bool:
    try:
        line = await network.connect(member, system=system, wait_seconds=1.0)
    except FelloeError:
        return False
    await line.close()
    return True


async def test_a_demoted_hubs_lines_are_dropped_and_its_tokens_refused_and_a_spokes_is_let_in(house: House) -> None:
    network, former = house.network, house.former
    bystander = await network.connect(network.member())
    lines = [await network.connect(former), await network.connect(former, system=True)]
    lost = [asyncio.Event() for _ in lines]
    for line, event in zip(lines, lost, strict=True):
        line.on_down(event.set)
    others_lost = asyncio.Event()
    bystander.on_down(others_lost.set)
    await house.demote(time.time())
    async with asyncio.timeout(5):
        for event in lost:
            await event.wait()
    assert not await is_let_in(network, former)
    assert not await is_let_in(network, former, system=True)
    spoke = Member(former.key, house.renewed())
    assert spoke.credential.system_token == ""
    assert await is_let_in(network, spoke)
    assert not others_lost.is_set()


async def test_a_token_of_the_very_second_of_the_demotion_is_refused_and_a_renewed_one_is_later(house: House) -> None:
    network, former = house.network, house.former
    second = read_token(former.credential.user_token).issued_at
    await house.demote(second + 0.9)
    assert not await is_let_in(network, former)
    assert await is_let_in(network, Member(former.key, house.renewed()))


async def test_a_clock_that_is_ahead_keeps_nobody_out(house: House) -> None:
    await house.demote(time.time() + 3600)
    assert not await is_let_in(house.network, house.former)
    assert await is_let_in(house.network, Member(house.former.key, house.renewed()))


async def test_a_hub_that_is_refused_renews_and_is_back_as_a_spoke_by_itself(house: House) -> None:
    network, former = house.network, house.former
    old = former.credential

    async def renew() -> Credential:
        return house.renewed()

    def save(credential: Credential) -> None:
        former.credential = credential

    keeper = CredentialKeeper(old, renew=renew, save=save, now=time.time, share=lambda: 0.0)
    line = await network.connect(former)
    line.on_refusal(keeper.note_refused)
    back = asyncio.Event()
    renewing = asyncio.create_task(keeper.run())
    try:
        line.on_up(back.set)
        await house.demote(time.time())
        async with asyncio.timeout(20):
            await back.wait()
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
    assert former.credential is not old
    assert former.credential.system_token == ""
