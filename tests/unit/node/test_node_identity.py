"""A hub says itself that it is one, until a hub refuses it: then another hub has to say so."""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe.domain.errors import FelloeError
from felloe.domain.roster import Role
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.join_client import Welcomed
from felloe.mesh.membership import Membership
from felloe.mesh.nats_jwt import read_token
from felloe.mesh.rotation import Keys, found, rotate
from felloe.mesh.trust import Trust
from felloe.node import identity as module
from felloe.node.config import NodeConfig
from felloe.node.founding import endpoints, found_network
from felloe.node.home import Home
from felloe.node.identity import Identity
from felloe.node.network_files import NetworkFiles

Answer = Callable[[], Welcomed]


class House:
    """A hub, and what the others say when they are asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        home = Home(folder / "home")
        home.prepare()
        self.files = NetworkFiles(home)
        membership = found_network(self.files, NodeConfig(), "first")
        self.identity = Identity(self.files, membership, endpoints(NodeConfig().peer))
        self.asked = 0
        self.answer: Answer = lambda: self.welcome("hub")
        monkeypatch.setattr(module, "renew", self.renew)

    async def renew(self, membership: Membership, trust: Trust, key: Ed25519PrivateKey, **_: object) -> Welcomed:
        del membership, trust, key
        self.asked += 1
        return self.answer()

    def welcome(self, role: Role, keys: Keys | None = None) -> Welcomed:
        authority: NetworkAuthority | None = keys.authority if keys else self.identity.authority
        assert authority is not None
        return Welcomed(
            membership=msgspec.structs.replace(self.identity.membership, role=role),
            credential=authority.issue(self.identity.public_key, role, time.time()),
            trust=keys.trust if keys else self.identity.trust,
            authority=authority if role == "hub" else None,
        )


def refuse(code: str) -> Answer:
    def answer() -> Welcomed:
        raise FelloeError(code, "said another hub")

    return answer


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    return House(tmp_path, monkeypatch)


async def test_a_hub_renews_its_credential_by_itself(house: House) -> None:
    assert (await house.identity.keeper.renew_now()).system_token
    assert house.asked == 0


async def test_a_hub_that_was_refused_has_another_one_say_that_it_still_is_one(house: House) -> None:
    house.identity.note_refused()
    assert (await house.identity.keeper.renew_now()).system_token
    assert house.asked == 1
    await house.identity.keeper.renew_now()
    assert house.asked == 1, "once for each refusal"


async def test_a_hub_that_was_refused_because_it_was_demoted_becomes_a_spoke_and_gives_up_the_keys(
    house: House,
) -> None:
    house.answer = lambda: house.welcome("spoke")
    house.identity.note_refused()
    assert (await house.identity.keeper.renew_now()).system_token == ""
    assert (house.identity.membership.role, house.identity.authority, house.files.authority()) == ("spoke", None, None)


@pytest.mark.parametrize("code", ["network_unreachable", "wrong_network", "version_refused"])
async def test_a_refused_hub_that_reaches_no_other_goes_on_by_its_own_word(house: House, code: str) -> None:
    house.answer = refuse(code)
    house.identity.note_refused()
    assert (await house.identity.keeper.renew_now()).system_token


async def test_a_hub_that_was_removed_issues_itself_nothing(house: House) -> None:
    house.answer = refuse("forbidden")
    house.identity.note_refused()
    before = house.identity.keeper.current
    with pytest.raises(FelloeError, match="forbidden"):
        await house.identity.keeper.renew_now()
    assert house.identity.keeper.current is before


async def test_what_a_hub_with_replaced_keys_issues_is_not_used(house: House) -> None:
    old = found(time.time())
    new = rotate(old, time.time(), 0)
    house.identity.take_keys(new.authority, new.trust)
    house.answer = lambda: house.welcome("hub", old)._replace(trust=new.trust)
    house.identity.note_refused()
    issuers = [read_token(one.user_token).issuer for one in (await house.identity.keeper.renew_now(),)]
    own = new.authority.issue(house.identity.public_key, "hub", time.time())
    assert issuers == [read_token(own.user_token).issuer]
    assert house.identity.authority is new.authority


async def test_a_hub_that_ceases_while_no_other_can_be_asked_is_a_spoke_at_the_next_start(house: House) -> None:
    house.answer = refuse("network_unreachable")
    house.identity.cease_as_hub()
    with pytest.raises(FelloeError, match="network_unreachable"):
        await house.identity.keeper.renew_now()
    kept = house.files.membership()
    assert kept is not None
    assert kept.role == "spoke"
    assert Identity(house.files, kept, endpoints(NodeConfig().peer)).authority is None
