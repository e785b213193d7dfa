"""The hubs' book of publications and decisions: who may write into it, how much, and what becomes of it."""

import asyncio
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from approval_house import Catalogues, envelope, listing, signer
from catalog_hubs import Hubs
from felloe.catalog.approval.decisions import open_decision, sign_decision
from felloe.catalog.approval.metadata import candidate, renewed, sign_candidate
from felloe.catalog.manifests import content_id, open_signed
from felloe.catalog.manifests import listing as listing_of
from felloe.domain.approval import LookAnswer, Publication, SignedDecision
from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.hubs import catalog_rules
from felloe.hubs.catalog_rules import decision_slot, page, publication_slot
from felloe.hubs.records import CATALOG, KeptDecision, KeptPublication
from waiting import until

DAY = 86_400.0


async def refusal(waiting: Any) -> str:
    with pytest.raises(FelloeError) as caught:
        await waiting
    return caught.value.code


async def test_what_a_member_publishes_is_there_for_curators_with_its_manifest():
    hubs, data = Hubs(Catalogues("ann")), envelope()
    published = await hubs.book.publish(data)
    assert published == Publication(listing=listing_of(data), published_at=int(hubs.house.now))
    assert hubs.book.look(0).publications == (published,)
    assert hubs.book.envelope(published.listing.content) == data
    with pytest.raises(FelloeError):
        hubs.book.envelope("ff" * 32)


async def test_strangers_and_removed_members_publish_nothing():
    hubs, stranger = Hubs(Catalogues("ann")), Ed25519PrivateKey.generate()
    assert await refusal(hubs.book.publish(envelope(key=stranger))) == "forbidden"
    hubs.add_member(stranger, revoked_at=5.0)
    assert await refusal(hubs.book.publish(envelope(key=stranger))) == "forbidden"
    assert await refusal(hubs.book.publish(b"{}")) == "bad_manifest"
    # Nobody signs for another node.
    forged = envelope().replace(b'"key":"', b'"key":"AAAA', 1)
    assert await refusal(hubs.book.publish(forged)) == "bad_manifest"
    assert hubs.book.look(0).publications == ()


async def test_a_manifest_too_large_to_be_published_is_refused_by_name():
    hubs = Hubs(Catalogues("ann"))
    with pytest.raises(FelloeError) as caught:
        await hubs.book.publish(envelope("big", licence="x" * 240_000))
    assert "big" in caught.value.detail


async def test_two_nodes_that_pull_the_same_model_publish_it_once():
    hubs, other = Hubs(Catalogues("ann"), count=2), Ed25519PrivateKey.generate()
    hubs.add_member(other)
    first, second = envelope(), envelope(key=other, source="ollama:tiny", created_at=5)
    assert content_id(open_signed(first)[0]) == content_id(open_signed(second)[0])
    published = await hubs.book.publish(first)
    assert await hubs.books[1].publish(second) == published
    assert len(hubs.book.look(0).publications) == 1


async def test_two_hubs_that_are_asked_at_once_keep_one_publication_and_both_decisions():
    hubs, other = Hubs(Catalogues("ann", "bob"), count=2), Ed25519PrivateKey.generate()
    hubs.add_member(other)
    one, two = await asyncio.gather(
        hubs.books[0].publish(envelope()), hubs.books[1].publish(envelope(key=other, created_at=5))
    )
    assert one == two
    hubs.look()
    words = [hubs.house.decision(name, "reject", name="tiny") for name in ("ann", "bob")]
    await asyncio.gather(*(book.decide(word) for book, word in zip(hubs.books, words, strict=True)))
    assert set(hubs.book.look(0).decisions) == set(words)


async def test_with_one_curator_of_one_a_decision_and_a_signature_are_all():
    hubs = Hubs(Catalogues("ann"))
    what = (await hubs.book.publish(envelope())).listing
    await hubs.decide("ann", "approve", listing=what)
    await hubs.sign("ann")
    assert hubs.house.approvals.approved[what.content].listing == what


async def test_two_of_three_decide_and_a_node_that_was_off_signs_later():
    hubs = Hubs(Catalogues("ann", "bob", "cid", threshold=2), count=3)
    what = (await hubs.book.publish(envelope())).listing
    await hubs.decide("ann", "approve", listing=what)
    await hubs.sign("ann", "bob", "cid")
    assert hubs.house.approvals.standing(what.content) == "unknown"
    await hubs.decide("bob", "approve", hub=1, listing=what)
    await hubs.sign("bob", hub=2)
    assert hubs.house.approvals.standing(what.content) == "unknown"
    await hubs.sign("ann", hub=1)
    assert hubs.house.approvals.standing(what.content) == "approved"


async def test_the_same_decision_twice_is_kept_once():
    hubs = Hubs(Catalogues("ann", "bob", threshold=2))
    made = await hubs.decide("ann", "approve", name="tiny")
    await hubs.book.decide(made)
    assert hubs.book.look(0).decisions == (made,)


async def test_decisions_of_strangers_and_damaged_ones_are_refused():
    hubs = Hubs(Catalogues("ann"))
    made = open_decision(hubs.house.decision("ann", "approve", name="tiny"))
    stranger = sign_decision(replace(made, by=signer(50).public_key), signer(50))
    assert await refusal(hubs.book.decide(stranger)) == "not_curator"
    posing = sign_decision(made, signer(50))
    assert await refusal(hubs.book.decide(posing)) == "catalog_refused"
    assert hubs.book.look(0).decisions == ()


async def test_signatures_over_anything_else_are_refused():
    hubs = Hubs(Catalogues("ann", "bob", threshold=2))
    for name in ("ann", "bob"):
        await hubs.decide(name, "approve", name="tiny")
    wanted = candidate(hubs.house.bundle, hubs.look().decisions, hubs.house.issuer.public_key, int(hubs.house.now))
    assert wanted is not None
    ann = sign_candidate(wanted, hubs.house.people["ann"])
    assert ann is not None
    for bad in (
        replace(ann, targets=bytes(64)),
        replace(ann, key=signer(50).public_key),
        replace(ann, digest=bytes(32)),
    ):
        assert await refusal(hubs.book.sign(bad)) == "catalog_refused"
    assert hubs.book.look(0).signatures == ()
    await hubs.book.sign(ann)
    assert hubs.book.look(0).signatures == (ann,)


async def test_the_leader_finishes_what_a_hub_that_died_began():
    hubs = Hubs(Catalogues("ann"))
    await hubs.decide("ann", "approve", name="tiny")
    wanted = candidate(hubs.house.bundle, hubs.look().decisions, hubs.house.issuer.public_key, int(hubs.house.now))
    assert wanted is not None
    made = sign_candidate(wanted, hubs.house.people["ann"])
    assert made is not None
    # One write is left: the signature is stored, the catalogue is not.
    hubs.states[0].writes_left = 1
    assert await refusal(hubs.book.sign(made)) == "network_unreachable"
    hubs.states[0].writes_left, hubs.states[0].reachable = None, True
    leads = True
    leader = asyncio.create_task(hubs.book.run(lambda: leads))
    hubs.book.wake()
    await until(lambda: hubs.look() and hubs.house.approvals.approved)
    leader.cancel()
    await asyncio.wait({leader})


async def test_the_leader_gives_fresh_dates_each_day_and_no_oftener():
    hubs = Hubs(Catalogues("ann", now=1_800_000_000))
    first = hubs.house.approvals
    hubs.house.now += DAY / 2
    assert (await hubs.book.tend()).timestamp_version == first.timestamp_version
    hubs.house.now += DAY
    after = await hubs.book.tend()
    assert after.timestamp_version == first.timestamp_version + 1
    assert after.expires_at > first.expires_at
    assert after.targets_version == first.targets_version


async def test_new_signing_keys_need_the_curators_and_until_then_nothing_is_dated():
    hubs = Hubs(Catalogues("ann", now=1_800_000_000))
    hubs.house.issuer = signer(101)
    hubs.house.now += 2 * DAY
    assert (await hubs.book.tend()).timestamp_version == 1
    await hubs.sign("ann")
    assert hubs.house.approvals.root_version == 2
    hubs.house.now += 2 * DAY
    assert (await hubs.book.tend()).timestamp_version == 3


async def test_a_state_that_came_back_from_an_old_copy_takes_what_its_hub_believes():
    house = Catalogues("ann")
    hubs = Hubs(house)
    house.approve("tiny", "ann")
    hubs.trusted = house.bundle
    assert (await hubs.book.tend()).standing(listing("tiny").content) == "approved"
    assert hubs.states[0].get(CATALOG) == house.bundle.encode()
    newer = renewed(house.bundle, house.issuer, house.now + 2 * DAY)
    assert newer is not None
    hubs.put(CATALOG, newer.encode())
    await hubs.book.tend()
    assert hubs.states[0].get(CATALOG) == newer.encode()


async def test_a_network_without_a_catalogue_says_so():
    hubs = Hubs(Catalogues("ann"))
    hubs.store.commit(len(hubs.store.log), CATALOG, None)
    assert await refusal(hubs.book.tend()) == "not_found"


def kept(name: str, number: int = 0, maker: str = "a") -> KeptPublication:
    what = replace(listing(name), made_by=NodeId(maker * 26))
    return KeptPublication(publication=Publication(listing=what, published_at=number), envelope=b"x" * 1000)


def test_publications_make_room_only_where_they_are_decided(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalog_rules, "MOST_PUBLICATIONS", 2)
    house = Catalogues("ann")
    full = {"catalog-publication.0000": kept("one", 5), "catalog-publication.0001": kept("two", 4)}

    def slot(new: KeptPublication) -> str | None:
        return publication_slot(full, new, house.approvals, lambda _: True)

    with pytest.raises(FelloeError) as caught:
        slot(kept("three"))
    assert caught.value.code == "overloaded"
    house.approve("one", "ann")
    assert slot(kept("three")) == "catalog-publication.0000"
    assert slot(kept("one")) is None


def test_a_publication_is_replaced_only_while_nobody_relies_on_it():
    house = Catalogues("ann")
    have = {"catalog-publication.0000": kept("one")}
    present = True

    def slot(new: KeptPublication) -> str | None:
        return publication_slot(have, new, house.approvals, lambda _: present)

    mended = kept("one")
    mended = replace(
        mended, publication=replace(mended.publication, listing=replace(mended.publication.listing, size=7))
    )
    assert slot(kept("one")) is None
    assert slot(kept("one", maker="b")) is None
    assert slot(mended) == "catalog-publication.0000"
    present = False
    assert slot(kept("one", maker="b")) == "catalog-publication.0000"
    present = True
    house.approve("one", "ann")
    assert slot(mended) is None
    house.decide("ann", "withdraw", name="one")
    house.sign("ann")
    assert slot(kept("one", maker="b")) == "catalog-publication.0000"


def test_one_node_cannot_fill_the_book(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalog_rules, "MOST_OF_ONE_NODE", 2)
    house = Catalogues("ann")
    have = {f"catalog-publication.{number:04}": kept(f"m{number}") for number in range(2)}
    with pytest.raises(FelloeError) as caught:
        publication_slot(have, kept("more"), house.approvals, lambda _: True)
    assert caught.value.code == "overloaded"
    assert (
        publication_slot(have, kept("more", maker="b"), house.approvals, lambda _: True) == "catalog-publication.0002"
    )


def test_all_manifests_together_have_a_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalog_rules, "MOST_KEPT_BYTES", 2500)
    house = Catalogues("ann")
    have = {f"catalog-publication.{number:04}": kept(f"m{number}", number) for number in range(2)}
    with pytest.raises(FelloeError):
        publication_slot(have, kept("more"), house.approvals, lambda _: True)
    house.approve("m1", "ann")
    assert publication_slot(have, kept("more"), house.approvals, lambda _: True) == "catalog-publication.0001"


def test_one_curator_cannot_crowd_out_the_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalog_rules, "MOST_DECISIONS", 6)
    words = [KeptDecision(signed=SignedDecision(b"%d" % number, bytes(64)), taken_at=number) for number in range(10)]
    have: dict[str, KeptDecision] = {}
    settled: set[KeptDecision] = set()

    def put(word: KeptDecision, by: bytes) -> str:
        slot = decision_slot(have, word, lambda _: by, settled.__contains__, 2)
        assert slot is not None
        have[slot] = word
        return slot

    assert [put(word, b"a") for word in words[:2]] == ["catalog-decision.0000", "catalog-decision.0001"]
    with pytest.raises(FelloeError):
        put(words[2], b"a")
    settled.add(words[0])
    assert put(words[2], b"a") == "catalog-decision.0002"
    assert decision_slot(have, words[2], lambda _: b"a", settled.__contains__, 2) is None
    settled.update(words)
    for word in words[3:6]:
        put(word, b"a")
    # The oldest that speaks of nothing any more goes first.
    assert put(words[6], b"a") == "catalog-decision.0000"
    assert put(words[7], b"a") == "catalog-decision.0001"


def test_everything_that_waits_is_seen_page_by_page(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalog_rules, "PAGE_BYTES", 500)
    decisions = [SignedDecision(b"%d" % number * 50, bytes(64)) for number in range(7)]
    publications = [kept(f"m{number}").publication for number in range(3)]
    seen: list[Any] = []
    after, pages = 0, 0
    while True:
        answer = page(decisions, publications, [], after)
        seen += [*answer.decisions, *answer.publications, *answer.signatures]
        pages += 1
        if not answer.next:
            break
        after = answer.next
    assert seen == [*decisions, *publications]
    assert pages > 3
    assert page(decisions, publications, [], 100) == LookAnswer((), (), (), 0)
