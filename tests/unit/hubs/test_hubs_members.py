"""The members on the state: one order of changes, whichever hub makes them."""

import asyncio

import pytest

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId, id_from_public_key
from felloe.domain.roster import Endpoints
from felloe.hubs import members as module
from felloe.hubs.members import MemberBook
from felloe.hubs.records import HUBS, LEASE, Hub, HubSet, Lease, encode
from hubs_fakes import FakeState, FakeStore

NOW = 1_800_000_000.0
KEYS = [bytes([number]) * 32 for number in range(8)]
IDS = [NodeId(id_from_public_key(key)) for key in KEYS]


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def book(store: FakeStore) -> MemberBook:
    return MemberBook(FakeState(store))


async def refusal(work: object) -> str:
    with pytest.raises(FelloeError) as caught:
        await work  # type: ignore[misc]
    return caught.value.code


async def test_a_member_that_joins_again_keeps_its_date_and_role_and_takes_the_new_name(book: MemberBook) -> None:
    first = await book.add(KEYS[0], "shed", "spoke", NOW)
    again = await book.add(KEYS[0], "barn", "hub", NOW + 5)
    assert (again.id, again.joined_at, again.name, again.role) == (first.id, NOW, "barn", "spoke")
    assert book.find(first.id) == again
    assert book.all() == (again,)


async def test_adding_the_same_once_more_writes_nothing(book: MemberBook, store: FakeStore) -> None:
    await book.add(KEYS[0], "shed", "spoke", NOW)
    await book.add(KEYS[0], "shed", "spoke", NOW + 5)
    assert len(store.log) == 1


async def test_every_hub_sees_the_same_members_oldest_first(book: MemberBook, store: FakeStore) -> None:
    other = MemberBook(FakeState(store))
    await book.add(KEYS[0], "young", "spoke", NOW + 1)
    await other.add(KEYS[1], "old", "spoke", NOW)
    assert [member.name for member in book.all()] == [member.name for member in other.all()] == ["old", "young"]


async def test_a_revoked_key_never_comes_back(book: MemberBook) -> None:
    await book.add(KEYS[0], "shed", "hub", NOW)
    await book.revoke(IDS[0], NOW + 10)
    await book.revoke(IDS[0], NOW + 99)
    assert book.is_revoked(IDS[0])
    assert book.find(IDS[0]).revoked_at == NOW + 10  # type: ignore[union-attr]
    assert await refusal(book.add(KEYS[0], "shed", "spoke", NOW + 20)) == "forbidden"
    assert await refusal(book.set_role(IDS[0], "hub", NOW)) == "forbidden"
    assert book.revocations(NOW + 20) == {KEYS[0]: NOW + 10}
    assert book.revocations(NOW + 49 * 3600) == {}, "no token can be that old"
    assert book.is_revoked(IDS[0])


async def test_a_revocation_on_one_hub_beats_a_join_on_another_that_has_not_heard_of_it(store: FakeStore) -> None:
    here, late = MemberBook(FakeState(store)), FakeState(store, follows=False)
    await here.add(KEYS[0], "shed", "spoke", NOW)
    late.catch_up()
    await here.revoke(IDS[0], NOW)
    assert await refusal(MemberBook(late).add(KEYS[0], "new name", "spoke", NOW)) == "forbidden"


async def test_who_is_not_a_member_cannot_be_changed(book: MemberBook) -> None:
    assert book.find(IDS[0]) is None
    assert not book.is_revoked(IDS[0])
    for work in (book.revoke(IDS[0], NOW), book.leave(IDS[0], NOW), book.set_role(IDS[0], "hub", NOW)):
        assert await refusal(work) == "not_found"


async def test_a_node_leaves_by_itself_but_not_while_it_is_a_hub(book: MemberBook) -> None:
    await book.add(KEYS[0], "shed", "hub", NOW)
    assert await refusal(book.leave(IDS[0], NOW + 1)) == "forbidden"
    await book.set_role(IDS[0], "spoke", NOW, never_hub=True)
    assert (await book.leave(IDS[0], NOW + 2)).revoked_at == NOW + 2
    assert await refusal(book.add(KEYS[0], "shed", "spoke", NOW + 3)) == "forbidden"


def is_listed(store: FakeStore, *numbers: int) -> None:
    """Have these nodes be dialled as hubs."""
    where = Endpoints(hosts=("10.0.0.1",), peer=1, mesh=2, route=3, state=4)
    hubs = [Hub(id=IDS[n], name="hub", public_key=KEYS[n], endpoints=where, since=NOW) for n in numbers]
    store.commit(len(store.log), HUBS, encode(HubSet(hubs=tuple(hubs))))


async def test_a_demoted_hub_keeps_its_rights_until_it_leaves_the_hubs(book: MemberBook, store: FakeStore) -> None:
    await book.add(KEYS[0], "shed", "hub", NOW)
    is_listed(store, 0, 1)
    await book.set_role(IDS[0], "spoke", NOW + 1)
    assert book.revocations(NOW + 1) == {}, "it still hands over its state"
    store.commit(len(store.log), LEASE, encode(Lease(holder=IDS[1], term=7, beat=0, seconds=15)))
    assert await refusal(book.end_hub(IDS[0], NOW + 5, term=6)) == "not_leader"
    await book.end_hub(IDS[0], NOW + 5, term=7)
    await book.end_hub(IDS[0], NOW + 9, term=7)
    assert book.revocations(NOW + 9) == {KEYS[0]: NOW + 5}, "what it was given since is not refused by a second try"
    assert book.revocations(NOW + 49 * 3600) == {}
    await book.revoke(IDS[0], NOW + 20)
    assert book.revocations(NOW + 20) == {KEYS[0]: NOW + 20}


async def test_one_that_was_to_be_a_hub_and_never_was_dialled_loses_a_hubs_rights_at_once(book: MemberBook) -> None:
    await book.add(KEYS[0], "shed", "hub", NOW)
    await book.add(KEYS[1], "attic", "spoke", NOW)
    for node in IDS[:2]:
        await book.set_role(node, "spoke", NOW + 1)
    assert book.revocations(NOW + 1) == {KEYS[0]: NOW + 1}, "a spoke had none to lose"


async def test_a_hub_that_is_promoted_again_is_let_in_with_what_it_has(book: MemberBook, store: FakeStore) -> None:
    await book.add(KEYS[0], "shed", "hub", NOW)
    await book.set_role(IDS[0], "spoke", NOW + 1)
    await book.set_role(IDS[0], "hub", NOW + 2)
    assert book.revocations(NOW + 2) == {}
    store.commit(len(store.log), LEASE, encode(Lease(holder=IDS[1], term=7, beat=0, seconds=15)))
    await book.end_hub(IDS[0], NOW + 3, term=7)
    assert book.revocations(NOW + 3) == {}, "it was promoted before the leader took it off"


async def test_a_role_is_checked_at_the_revision_of_the_write(store: FakeStore) -> None:
    here, late = FakeState(store), FakeState(store, follows=False)
    book = MemberBook(here)
    for key in KEYS[:2]:
        await book.add(key, "hub", "hub", NOW)
    late.catch_up()

    def leaves_one(books: MemberBook) -> None:
        if sum(member.role == "hub" for member in books.all()) < 2:
            raise FelloeError("quorum_at_risk", "the last one")

    await book.set_role(IDS[0], "spoke", NOW, check=lambda _: leaves_one(book))
    other = MemberBook(late)
    assert await refusal(other.set_role(IDS[1], "spoke", NOW, check=lambda _: leaves_one(other))) == "quorum_at_risk"


async def test_a_write_of_an_old_leader_is_refused(book: MemberBook, store: FakeStore) -> None:
    await book.add(KEYS[0], "shed", "spoke", NOW)
    store.commit(len(store.log), LEASE, encode(Lease(holder=IDS[1], term=7, beat=0, seconds=15)))
    assert await refusal(book.set_role(IDS[0], "hub", NOW, term=6)) == "not_leader"
    assert (await book.set_role(IDS[0], "hub", NOW, term=7)).role == "hub"


async def test_the_network_is_bounded_exactly_also_when_two_hubs_add_at_once(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_MEMBERS", 5)
    books = [MemberBook(FakeState(store, follows=False)) for _ in KEYS]
    results = await asyncio.gather(
        *(book.add(key, "n", "spoke", NOW) for book, key in zip(books, KEYS, strict=True)), return_exceptions=True
    )
    assert sum(not isinstance(result, BaseException) for result in results) == 5
    assert {r.code for r in results if isinstance(r, FelloeError)} == {"forbidden"}
    assert (await MemberBook(FakeState(store)).add(KEYS[0], "other name", "spoke", NOW)).name == "other name"


@pytest.mark.parametrize("value", [b"{", b"null", b"\xff", b'{"id":"x"}'])
async def test_a_damaged_row_is_refused_and_never_taken_for_no_member(
    book: MemberBook, store: FakeStore, value: bytes
) -> None:
    store.commit(0, f"member.{IDS[0]}", value)
    for look in (lambda: book.find(IDS[0]), lambda: book.is_revoked(IDS[0]), book.all, lambda: book.revocations(NOW)):
        with pytest.raises(FelloeError, match="bad_state"):
            look()


async def test_a_row_under_another_id_is_refused(book: MemberBook, store: FakeStore) -> None:
    member = await book.add(KEYS[0], "shed", "spoke", NOW)
    store.commit(1, f"member.{IDS[1]}", encode(member))
    with pytest.raises(FelloeError, match="another member"):
        book.find(IDS[1])


async def test_a_row_of_an_older_version_reads_as_one_that_may_be_a_hub(book: MemberBook, store: FakeStore) -> None:
    member = await book.add(KEYS[0], "shed", "spoke", NOW)
    store.commit(1, f"member.{IDS[0]}", encode(member).replace(b',"never_hub":false,"demoted_at":0.0', b""))
    assert book.find(IDS[0]) == member
