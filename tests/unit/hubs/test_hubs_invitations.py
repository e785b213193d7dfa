"""Invitations on the state: counted so that no use is lost and none is given twice, whichever hub is asked."""

import asyncio
import base64

import pytest

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.hubs import invitations as module
from felloe.hubs.invitations import InvitationBook
from hubs_fakes import FakeState, FakeStore

NOW = 1_800_000_000.0
A, B, C = (NodeId(letter * 26) for letter in "abc")


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def book(store: FakeStore) -> InvitationBook:
    return InvitationBook(FakeState(store))


async def reason(book: InvitationBook, identifier: bytes, secret: bytes, node: NodeId, now: float = NOW) -> str:
    with pytest.raises(FelloeError) as caught:
        await book.redeem(identifier, secret, node, now)
    assert caught.value.code == "token_refused"
    return caught.value.detail


async def test_it_lets_in_as_many_nodes_as_it_has_uses(book: InvitationBook) -> None:
    invitation, secret = await book.invite("spoke", 2, 60, NOW)
    assert [await book.redeem(invitation.id, secret, node, NOW) for node in (A, B)] == ["spoke", "spoke"]
    assert "used up" in await reason(book, invitation.id, secret, C)


async def test_the_same_node_may_ask_again_without_costing_a_use(book: InvitationBook) -> None:
    invitation, secret = await book.invite("hub", 2, 60, NOW)
    for node in (A, A, A, B, A):
        assert await book.redeem(invitation.id, secret, node, NOW) == "hub"
    assert book.all()[0].joined == (A, B)
    assert "expired" in await reason(book, invitation.id, secret, A, NOW + 60)


async def test_uses_are_counted_exactly_when_many_hubs_are_asked_at_once(store: FakeStore) -> None:
    hubs = [InvitationBook(FakeState(store, follows=False)) for _ in range(5)]
    invitation, secret = await hubs[0].invite("spoke", 7, 60, NOW)
    for view in store.views:
        view.catch_up()
    nodes = [NodeId(f"{number:026d}") for number in range(12)]
    asked = [(hub, node) for node in nodes for hub in (hubs[hash(node) % 5], hubs[0])]
    results = await asyncio.gather(
        *(hub.redeem(invitation.id, secret, node, NOW) for hub, node in asked), return_exceptions=True
    )
    for hub, node in asked:
        # What failed only because all wrote at once is asked again, as a client does.
        while True:
            try:
                results.append(await hub.redeem(invitation.id, secret, node, NOW))
            except FelloeError as error:
                if error.code == "overloaded":
                    continue
                assert error.detail == "the token is used up"
            break
    let_in = InvitationBook(FakeState(store)).all()[0].joined
    assert len(let_in) == len(set(let_in)) == 7
    for (_, node), result in zip(asked, results, strict=False):
        assert (result == "spoke") <= (node in let_in)


async def test_a_use_whose_answer_was_lost_is_not_given_to_another(book: InvitationBook, store: FakeStore) -> None:
    invitation, secret = await book.invite("spoke", 1, 60, NOW)
    state = store.views[0]
    state.lose_answers = 1
    with pytest.raises(FelloeError, match="network_unreachable"):
        await book.redeem(invitation.id, secret, A, NOW)
    assert "used up" in await reason(book, invitation.id, secret, B)
    assert await book.redeem(invitation.id, secret, A, NOW) == "spoke"


async def test_nothing_is_used_up_when_the_state_takes_no_writes(book: InvitationBook, store: FakeStore) -> None:
    invitation, secret = await book.invite("spoke", 1, 60, NOW)
    store.writable = False
    with pytest.raises(FelloeError, match="network_unreachable"):
        await book.redeem(invitation.id, secret, A, NOW)
    store.writable = True
    assert await book.redeem(invitation.id, secret, B, NOW) == "spoke"
    assert book.all()[0].joined == (B,)


async def test_who_lacks_the_secret_hears_the_same_whatever_the_state(book: InvitationBook, store: FakeStore) -> None:
    opened, secret = await book.invite("spoke", 1, 60, NOW)
    used, used_secret = await book.invite("spoke", 1, 60, NOW)
    await book.redeem(used.id, used_secret, A, NOW)
    withdrawn, _ = await book.invite("spoke", 1, 60, NOW)
    await book.withdraw(withdrawn.id)
    wrong = bytes(20)
    before = len(store.log)
    heard = {await reason(book, one, wrong, A) for one in (opened.id, used.id, withdrawn.id, bytes(10), b"", b"*")}
    heard |= {
        await reason(book, opened.id, wrong, A, NOW + 100),
        await reason(book, bytes(10), secret, A),
        await reason(book, opened.id[:-1], secret, A),
    }
    heard |= {await reason(book, opened.id, guess, A) for guess in (b"", secret[:-1], secret + b"\0", used_secret)}
    assert len(heard) == 1
    assert len(store.log) == before


async def test_an_unknown_id_costs_the_same_work_as_a_wrong_secret(
    book: InvitationBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []

    class Watched:
        @staticmethod
        def compare_digest(first: bytes, second: bytes) -> bool:
            compared.append((len(first), len(second)))
            return first == second

    invitation, _ = await book.invite("spoke", 1, 60, NOW)
    monkeypatch.setattr(module, "hmac", Watched)
    for identifier in (invitation.id, bytes(10)):
        await reason(book, identifier, bytes(20), A)
    assert compared == [(32, 32), (32, 32)]


async def test_the_secret_is_not_kept(book: InvitationBook, store: FakeStore) -> None:
    _, secret = await book.invite("spoke", 1, 60, NOW)
    for _, value in store.log:
        assert secret not in (value or b"")
        assert base64.b64encode(secret) not in (value or b"")


async def test_all_open_invitations_are_withdrawn_at_once(book: InvitationBook) -> None:
    opened = [await book.invite("spoke", 2, 60, NOW) for _ in range(3)]
    used, secret = await book.invite("spoke", 1, 60, NOW)
    await book.redeem(used.id, secret, A, NOW)
    await book.invite("spoke", 1, 1, NOW - 10)
    assert await book.withdraw_open(NOW) == 3
    for invitation, secret in opened:
        assert "withdrawn" in await reason(book, invitation.id, secret, B)
    assert await book.withdraw_open(NOW) == 0
    assert sorted(one.standing(NOW) for one in book.all()) == ["expired", "used up", *["withdrawn"] * 3]


async def test_withdrawing_stops_further_joins_on_every_hub(book: InvitationBook, store: FakeStore) -> None:
    invitation, secret = await book.invite("spoke", 5, 60, NOW)
    late = InvitationBook(FakeState(store, follows=False))
    await book.redeem(invitation.id, secret, A, NOW)
    await book.withdraw(invitation.id)
    assert "withdrawn" in await reason(book, invitation.id, secret, A)
    assert "withdrawn" in await reason(late, invitation.id, secret, B)
    with pytest.raises(FelloeError, match="not_found"):
        await book.withdraw(bytes(10))


@pytest.mark.parametrize(
    ("uses", "seconds"), [(0, 60), (-1, 60), (1001, 60), (1, 0), (1, 31 * 86400), (1, float("nan"))]
)
async def test_odd_counts_and_times_are_refused(book: InvitationBook, uses: int, seconds: float) -> None:
    with pytest.raises(FelloeError) as caught:
        await book.invite("spoke", uses, seconds, NOW)
    assert caught.value.code == "invalid_value"


async def test_their_number_is_bounded_and_old_ones_make_room(
    book: InvitationBook, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_INVITATIONS", 8)
    others = [InvitationBook(FakeState(store, follows=False)) for _ in range(9)]
    results = await asyncio.gather(*(one.invite("spoke", 1, 60, NOW) for one in others), return_exceptions=True)
    assert sum(isinstance(result, FelloeError) for result in results) == 1
    with pytest.raises(FelloeError, match="8 invitations"):
        await book.invite("spoke", 1, 60, NOW)
    await book.invite("spoke", 1, 60, NOW + 8 * 86400)
    assert len(book.all()) == 1


@pytest.mark.parametrize("content", [b"{", b"null", b'{"version":1}', b"\xff"])
async def test_a_damaged_invitation_is_refused(book: InvitationBook, store: FakeStore, content: bytes) -> None:
    invitation, secret = await book.invite("spoke", 1, 60, NOW)
    store.commit(1, f"invitation.{invitation.id.hex()}", content)
    with pytest.raises(FelloeError) as caught:
        await book.redeem(invitation.id, secret, A, NOW)
    assert caught.value.code == "bad_state"
