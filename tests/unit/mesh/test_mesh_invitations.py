"""Invitations: counted so that no use is lost and none is given twice."""

import base64

import pytest

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.mesh.invitations import Invitations

NOW = 1_800_000_000.0
A, B, C = (NodeId(letter * 26) for letter in "abc")


class Disk:
    """Keeps what was stored last; can be full."""

    def __init__(self) -> None:
        self.content = b""
        self.full = False

    def save(self, data: bytes) -> None:
        if self.full:
            raise FelloeError("disk_full", "no room")
        self.content = data


@pytest.fixture
def disk() -> Disk:
    return Disk()


async def reason(invitations: Invitations, identifier: bytes, secret: bytes, node: NodeId, now: float = NOW) -> str:
    with pytest.raises(FelloeError) as caught:
        await invitations.redeem(identifier, secret, node, now)
    assert caught.value.code == "token_refused"
    return caught.value.detail


async def test_it_lets_in_as_many_nodes_as_it_has_uses(disk: Disk) -> None:
    invitations = Invitations(disk.save)
    invitation, secret = invitations.invite("spoke", 2, 60, NOW)
    assert [await invitations.redeem(invitation.id, secret, node, NOW) for node in (A, B)] == ["spoke", "spoke"]
    assert "used up" in await reason(invitations, invitation.id, secret, C)


async def test_the_same_node_may_ask_again_without_costing_a_use(disk: Disk) -> None:
    invitations = Invitations(disk.save)
    invitation, secret = invitations.invite("hub", 2, 60, NOW)
    for node in (A, A, A, B, A):
        assert await invitations.redeem(invitation.id, secret, node, NOW) == "hub"
    assert invitations.all()[0].joined == (A, B)
    assert "expired" in await reason(invitations, invitation.id, secret, A, NOW + 60)


async def test_uses_survive_a_restart(disk: Disk) -> None:
    invitations = Invitations(disk.save)
    invitation, secret = invitations.invite("spoke", 1, 60, NOW)
    await invitations.redeem(invitation.id, secret, A, NOW)
    again = Invitations(disk.save, stored=disk.content)
    assert again.all() == invitations.all()
    assert "used up" in await reason(again, invitation.id, secret, B)


async def test_a_use_is_stored_before_it_is_acknowledged_and_kept_when_it_cannot_be(disk: Disk) -> None:
    invitations = Invitations(disk.save)
    invitation, secret = invitations.invite("spoke", 1, 60, NOW)
    disk.full = True
    with pytest.raises(FelloeError, match="disk_full"):
        await invitations.redeem(invitation.id, secret, A, NOW)
    disk.full = False
    assert invitations.all()[0].joined == ()
    assert await invitations.redeem(invitation.id, secret, B, NOW) == "spoke"
    assert Invitations(disk.save, stored=disk.content).all()[0].joined == (B,)


async def test_who_lacks_the_secret_hears_the_same_whatever_the_state(disk: Disk) -> None:
    invitations = Invitations(disk.save)
    opened, secret = invitations.invite("spoke", 1, 60, NOW)
    used, used_secret = invitations.invite("spoke", 1, 60, NOW)
    await invitations.redeem(used.id, used_secret, A, NOW)
    withdrawn, _ = invitations.invite("spoke", 1, 60, NOW)
    invitations.withdraw(withdrawn.id)
    wrong = bytes(20)
    heard = {await reason(invitations, one, wrong, A) for one in (opened.id, used.id, withdrawn.id, bytes(10), b"")}
    heard |= {
        await reason(invitations, opened.id, wrong, A, NOW + 100),
        await reason(invitations, bytes(10), secret, A),
    }
    heard |= {
        await reason(invitations, opened.id, guess, A) for guess in (b"", secret[:-1], secret + b"\0", used_secret)
    }
    assert len(heard) == 1


def test_the_secret_is_not_kept(disk: Disk) -> None:
    _, secret = Invitations(disk.save).invite("spoke", 1, 60, NOW)
    assert secret not in disk.content
    assert base64.b64encode(secret) not in disk.content


async def test_withdrawing_stops_further_joins(disk: Disk) -> None:
    invitations = Invitations(disk.save)
    invitation, secret = invitations.invite("spoke", 5, 60, NOW)
    await invitations.redeem(invitation.id, secret, A, NOW)
    invitations.withdraw(invitation.id)
    assert "withdrawn" in await reason(invitations, invitation.id, secret, B)
    assert "withdrawn" in await reason(invitations, invitation.id, secret, A)
    with pytest.raises(FelloeError, match="not_found"):
        invitations.withdraw(bytes(10))


@pytest.mark.parametrize(
    ("uses", "seconds"), [(0, 60), (-1, 60), (1001, 60), (1, 0), (1, 31 * 86400), (1, float("nan"))]
)
def test_odd_counts_and_times_are_refused(disk: Disk, uses: int, seconds: float) -> None:
    with pytest.raises(FelloeError) as caught:
        Invitations(disk.save).invite("spoke", uses, seconds, NOW)
    assert caught.value.code == "invalid_value"


def test_their_number_is_bounded_and_old_ones_make_room(disk: Disk) -> None:
    invitations = Invitations(disk.save)
    for _ in range(256):
        invitations.invite("spoke", 1, 60, NOW)
    with pytest.raises(FelloeError, match="256"):
        invitations.invite("spoke", 1, 60, NOW)
    invitations.invite("spoke", 1, 60, NOW + 8 * 86400)
    assert len(invitations.all()) == 1


@pytest.mark.parametrize("content", [b"{", b"null", b'{"version":2,"invitations":[]}', b'{"version":1}', b"\xff"])
def test_a_damaged_list_is_refused(disk: Disk, content: bytes) -> None:
    with pytest.raises(FelloeError) as caught:
        Invitations(disk.save, stored=content)
    assert caught.value.code == "bad_state"
