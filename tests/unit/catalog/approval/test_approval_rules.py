"""What follows from decisions: votes are counted as one expects, once each, and only while they speak of what is."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from approval_house import Catalogues, listing, signer
from felloe.catalog.approval.decisions import new_decision, open_decision, opened, sign_decision
from felloe.catalog.approval.metadata import candidate, pin_of
from felloe.catalog.approval.rules import MOST_LISTED_BYTES, Catalogue, check_use, following, made_at
from felloe.catalog.approval.tuf_files import verified
from felloe.domain.approval import (
    MOST_CURATORS,
    MOST_WITHDRAWN,
    Approvals,
    Approved,
    Curator,
    Decision,
    SignedDecision,
    check_decision,
)
from felloe.domain.errors import FelloeError

TINY = listing("tiny")


def three(threshold: int = 2) -> Catalogues:
    return Catalogues("ann", "bob", "cid", threshold=threshold, now=1_800_000_000)


def catalogue(house: Catalogues) -> Catalogue:
    return verified(house.bundle, house.pin).catalogue


def code(house: Catalogues, signed: SignedDecision, now: float = 1_800_000_000) -> str:
    with pytest.raises(FelloeError) as caught:
        check_use(catalogue(house), open_decision(signed), now)
    return caught.value.code


def test_one_curator_of_one_approves_alone():
    house = Catalogues("ann")
    house.approve("tiny", "ann")
    approved = house.approvals.approved[TINY.content]
    assert (approved.listing, approved.approved_by) == (TINY, ("ann",))


def test_two_of_three_are_needed_and_any_two_do():
    house = three()
    house.decide("cid", "approve", name="tiny")
    assert house.candidate() is None
    house.decide("ann", "approve", name="tiny")
    assert house.sign("ann", "cid")
    assert house.approvals.approved[TINY.content].approved_by == ("ann", "cid")


def test_the_same_curator_twice_is_one_voice():
    house = three()
    house.decide("ann", "approve", name="tiny")
    house.decide("ann", "approve", name="tiny")
    assert house.candidate() is None


def test_a_stranger_has_no_voice():
    house = three()
    house.decide("ann", "approve", name="tiny")
    stranger = replace(open_decision(house.decisions[-1]), by=signer(50).public_key)
    assert house.candidate([*house.decisions, sign_decision(stranger, signer(50))]) is None


def test_the_newest_word_of_a_curator_counts():
    house = three()
    house.decide("ann", "approve", name="tiny")
    house.decide("ann", "reject", name="tiny", reason="no licence")
    house.decide("bob", "approve", name="tiny")
    assert house.candidate() is None
    house.decide("ann", "approve", name="tiny")
    assert house.sign("ann", "bob")


def test_voices_for_two_manifests_of_one_content_do_not_add_up():
    house = three()
    house.decide("ann", "approve", listing=TINY)
    house.decide("bob", "approve", listing=replace(TINY, sha256=b"x" * 32))
    assert house.candidate() is None


def test_a_withdrawn_content_is_not_approved_again_by_old_words():
    house = three()
    house.approve("tiny", "ann", "bob")
    for name in ("bob", "cid"):
        house.decide(name, "withdraw", name="tiny", reason="it lies")
    assert house.sign("ann", "cid")
    assert house.approvals.withdrawn[TINY.content].reason == "it lies"
    assert house.candidate() is None
    house.decide("cid", "approve", name="tiny")
    assert house.candidate() is None
    house.decide("ann", "approve", name="tiny")
    assert house.sign("ann", "cid")
    assert house.approvals.standing(TINY.content) == "approved"


def test_one_of_three_can_withdraw_what_another_approved_again_and_again():
    house = three(threshold=1)
    house.decide("ann", "approve", name="tiny")
    house.sign("ann")
    house.decide("ann", "approve", name="tiny")
    house.decide("bob", "withdraw", name="tiny")
    assert house.sign("bob")
    assert house.approvals.standing(TINY.content) == "withdrawn"
    assert house.candidate() is None


def test_one_name_stands_for_one_content():
    house = Catalogues("ann")
    other = listing("tiny", "ef" * 32)
    house.approve("tiny", "ann")
    house.decide("ann", "approve", listing=other)
    assert house.candidate() is None
    assert code(house, house.decisions[-1], house.now) == "invalid_value"
    house.decide("ann", "withdraw", name="tiny")
    assert house.sign("ann")
    assert house.approvals.named("tiny") == house.approvals.approved[other.content]


def test_two_contents_decided_at_once_under_one_name_are_not_both_approved():
    house = Catalogues("ann")
    for content in ("ab" * 32, "cd" * 32):
        house.decide("ann", "approve", listing=listing("tiny", content))
    assert house.sign("ann")
    assert [one.listing.name for one in house.approvals.approved.values()] == ["tiny"]


def test_what_was_decided_before_a_curator_was_removed_and_added_again_is_void():
    house = three()
    house.decide("cid", "approve", name="tiny")
    for by in ("ann", "bob"):
        house.decide(by, "remove_curator", name="cid", curator=house.people["cid"].public_key)
    assert house.sign("ann", "bob")
    house.decide("ann", "approve", name="tiny")
    assert house.candidate() is None
    for by in ("ann", "bob"):
        house.decide(by, "add_curator", name="cid", curator=house.people["cid"].public_key)
    assert house.sign("ann", "bob")
    assert house.candidate() is None


def test_who_claims_to_have_seen_the_future_has_no_say_yet():
    house = three()
    made = open_decision(house.decision("ann", "approve", name="tiny"))
    house.decide("bob", "approve", name="tiny")
    far = sign_decision(replace(made, seen_targets=1000), house.people["ann"])
    assert house.candidate([*house.decisions, far]) is None


def test_a_date_in_the_far_future_binds_nobody():
    house = three(threshold=1)
    rogue = replace(open_decision(house.decision("bob", "approve", name="tiny")), made_at=32_503_680_000)
    house.decisions.append(sign_decision(rogue, house.people["bob"]))
    house.sign("bob")
    house.decide("ann", "withdraw", name="tiny")
    assert house.sign("ann")
    assert house.approvals.standing(TINY.content) == "withdrawn"


def test_decisions_of_another_network_say_nothing():
    house, other = Catalogues("ann"), Catalogues("ann", now=1_700_000_000)
    assert house.people["ann"].public_key == other.people["ann"].public_key
    assert house.candidate([other.decision("ann", "approve", name="tiny")]) is None


def test_the_threshold_never_exceeds_the_curators():
    house = Catalogues("ann", "bob")
    house.decide("ann", "set_threshold", threshold=3)
    assert house.candidate() is None
    house.decide("ann", "set_threshold", threshold=2)
    assert house.made("ann") is None
    assert house.sign("ann", "bob")
    for by in ("ann", "bob"):
        house.decide(by, "remove_curator", name="bob", curator=house.people["bob"].public_key)
    assert house.candidate() is None
    assert code(house, house.decisions[-1], house.now) == "invalid_value"


def test_a_threshold_that_waits_for_a_key_that_is_lost_can_be_taken_back():
    house = Catalogues("ann", "bob")
    house.decide("ann", "set_threshold", threshold=2)
    assert house.made("ann") is None
    house.decide("ann", "set_threshold", threshold=1)
    assert house.candidate() is None


def test_a_curator_who_comes_with_the_higher_threshold_signs_it():
    house = Catalogues("ann")
    house.people["bob"] = signer(2)
    house.decide("ann", "add_curator", name="bob", curator=signer(2).public_key)
    house.decide("ann", "set_threshold", threshold=2)
    assert house.made("ann") is None
    assert house.sign("ann", "bob")
    assert (len(house.approvals.curators), house.approvals.threshold) == (2, 2)


def test_two_curators_never_share_a_name_and_there_is_an_end_to_their_number():
    house = Catalogues("ann")
    house.decide("ann", "add_curator", name="ann", curator=signer(2).public_key)
    assert house.candidate() is None
    full = Catalogues(*(f"c{number}" for number in range(MOST_CURATORS)))
    full.people["more"] = signer(99)
    full.decide("c0", "add_curator", name="more", curator=signer(99).public_key)
    assert full.candidate() is None
    assert code(full, full.decisions[-1], full.now) == "invalid_value"


def test_new_signing_keys_of_the_hubs_lead_to_a_new_root_without_a_decision():
    house = three()
    house.issuer = signer(101)
    assert house.sign("ann", "bob")
    assert catalogue(house).issuer == signer(101).public_key
    assert house.candidate() is None


def test_expiry_follows_the_decisions_and_never_comes_nearer():
    house = three(threshold=1)
    before = catalogue(house).targets_until
    early = replace(open_decision(house.decision("bob", "approve", name="tiny")), made_at=5)
    house.decisions.append(sign_decision(early, house.people["bob"]))
    house.sign("bob")
    assert catalogue(house).targets_until == before
    house.now += 86_400
    house.approve("other", "ann")
    assert catalogue(house).targets_until > before


def test_useless_decisions_are_refused_with_the_reason():
    house = three()
    withdraw = house.decision("ann", "withdraw", name="tiny")
    assert code(house, withdraw) == "invalid_value"
    stranger = replace(open_decision(withdraw), by=signer(50).public_key)
    assert code(house, sign_decision(stranger, signer(50))) == "not_curator"
    future = replace(open_decision(house.decision("ann", "approve", name="tiny")), made_at=1_800_010_000)
    assert code(house, sign_decision(future, house.people["ann"])) == "invalid_value"
    hour_ahead = house.decision("ann", "approve", name="tiny")
    check_use(catalogue(house), open_decision(hour_ahead), house.now - 3600)


def test_who_is_no_curator_cannot_even_make_a_decision():
    with pytest.raises(FelloeError) as caught:
        new_decision(three().approvals, signer(50).public_key, "set_threshold", 0.0, threshold=1)
    assert caught.value.code == "not_curator"


@pytest.mark.parametrize(
    "fields",
    [
        {"verdict": "approve", "content": TINY.content, "name": "tiny"},
        {"verdict": "approve", "content": TINY.content, "name": "other", "listing": TINY},
        {"verdict": "approve", "content": "x", "name": "tiny", "listing": TINY},
        {"verdict": "approve", "content": TINY.content, "name": "tiny", "listing": replace(TINY, architecture="a\n")},
        {"verdict": "approve", "content": TINY.content, "name": "tiny", "listing": replace(TINY, made_by="x")},
        {"verdict": "withdraw", "content": TINY.content, "name": "../x"},
        {"verdict": "withdraw", "content": TINY.content, "name": "tiny", "reason": "a\nb"},
        {"verdict": "withdraw", "content": TINY.content, "name": "tiny", "reason": "a" * 301},
        {"verdict": "set_threshold", "threshold": 0},
        {"verdict": "set_threshold", "threshold": 17},
        {"verdict": "add_curator", "name": "bob", "curator": b"short"},
        {"verdict": "add_curator", "name": "b:b", "curator": bytes(32)},
        {"verdict": "add_curator", "name": "", "curator": bytes(32)},
    ],
)
def test_a_decision_whose_fields_do_not_fit_is_not_made(fields: dict[str, Any]):
    house = Catalogues("ann")
    with pytest.raises(FelloeError) as caught:
        new_decision(house.approvals, house.people["ann"].public_key, now=house.now, **fields)
    assert caught.value.code == "invalid_value"


def test_a_decision_that_was_changed_or_is_not_one_is_refused():
    house = Catalogues("ann")
    good = house.decision("ann", "approve", name="tiny")
    for bad in (
        SignedDecision(good.body.replace(b"tiny", b"tony"), good.signature),
        SignedDecision(good.body, bytes(64)),
        SignedDecision(b"{}", good.signature),
        SignedDecision(b"[" * 8000, good.signature),
        SignedDecision(good.body + b" " * 9000, good.signature),
        SignedDecision(b"\xff\xfe", good.signature),
    ):
        with pytest.raises(FelloeError) as caught:
            open_decision(bad)
        assert caught.value.code == "catalog_refused"
        assert opened([bad, good]) == [open_decision(good)]


def test_decisions_of_one_curator_have_growing_dates_whatever_the_clock():
    house = Catalogues("ann")
    first = open_decision(house.decide("ann", "approve", name="tiny"))
    house.now -= 3600
    assert open_decision(house.decide("ann", "reject", name="tiny")).made_at == first.made_at + 1
    assert made_at(5.0, []) == 5


def test_withdrawals_beyond_what_is_listed_do_not_bring_old_words_back():
    house = Catalogues("ann")
    before, key = catalogue(house), house.people["ann"]
    words: list[Decision] = []
    for number in range(MOST_WITHDRAWN + 3):
        what = listing(f"m{number}")
        fields = {"content": what.content, "name": what.name}
        for verdict, more in (("approve", {"listing": what}), ("withdraw", {})):
            seen = {"seen_root": before.root_version, "seen_targets": before.targets_version}
            made = Decision(
                catalog=before.pin, verdict=verdict, by=key.public_key, made_at=number, **seen, **fields, **more
            )  # type: ignore[arg-type]
            check_decision(made)
            words.append(made)
            # Each is decided alone: all of the others are void already, and stay so.
            after = following(before, [made], before.issuer, 0)
            assert after.targets_version == before.targets_version + 1
            before = after
    assert len(before.withdrawn) == MOST_WITHDRAWN
    assert following(before, words, before.issuer, 0) is before


def test_a_catalogue_never_grows_too_large_for_the_nodes():
    house = Catalogues("ann")
    decisions, made = [], open_decision(house.decision("ann", "approve", name="tiny"))
    for number in range(600):
        what = replace(listing(f"m{number}" + "x" * 100), architecture="a" * 64, quantisation="q" * 64)
        decisions.append(replace(made, listing=what, content=what.content, name=what.name))
    after = following(catalogue(house), decisions, house.issuer.public_key, 0)
    assert 100 < len(after.approved) < 600
    assert sum(len(str(one)) for one in after.approved.values()) < 4 * MOST_LISTED_BYTES


@cache
def founded() -> Catalogue:
    return catalogue(Catalogues("ann", now=1_800_000_000))


@cache
def of_three() -> Catalogues:
    return three()


def state(curators: int, threshold: int) -> Catalogue:
    base = founded()
    people = tuple(
        Curator(name=f"c{number}", key=signer(number).public_key, since=1) for number in range(1, curators + 1)
    )
    ordered = tuple(sorted(people, key=lambda one: one.key))
    return replace(base, curators=ordered, threshold=threshold, targets_version=3, root_version=3)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Catalogue, list[Decision]]:
    before = state(draw(st.integers(1, 4)), 1)
    before = replace(before, threshold=draw(st.integers(1, len(before.curators))))
    approved = {
        one.content: Approved(listing=one, approved_at=1, approved_by=("c1",), since=draw(st.integers(1, 3)))
        for one in draw(st.lists(st.sampled_from([listing("a"), listing("b")]), unique=True))
    }
    before = replace(before, approved=approved)
    keys = st.sampled_from([signer(number).public_key for number in range(1, 6)])
    decisions = []
    for _ in range(draw(st.integers(0, 12))):
        verdict = draw(
            st.sampled_from(
                ["approve", "approve", "withdraw", "reject", "add_curator", "remove_curator", "set_threshold"]
            )
        )
        fields: dict[str, Any] = {}
        if verdict in ("approve", "reject", "withdraw"):
            what = draw(st.sampled_from([listing("a"), listing("b"), listing("a", "ab" * 32)]))
            fields = {"content": what.content, "name": what.name, "listing": what if verdict == "approve" else None}
        elif verdict == "set_threshold":
            fields = {"threshold": draw(st.integers(1, 5))}
        else:
            fields = {"curator": draw(keys), "name": draw(st.sampled_from(["c1", "x", "y"]))}
        decisions.append(
            Decision(
                catalog=before.pin,
                verdict=verdict,  # type: ignore[arg-type]
                by=draw(keys),
                seen_root=draw(st.integers(1, 4)),
                seen_targets=draw(st.integers(1, 4)),
                made_at=draw(st.integers(0, 20)),
                **fields,
            )
        )
    return before, decisions


@settings(max_examples=80, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_what_follows_does_not_depend_on_the_order_of_decisions(world: tuple[Catalogue, list[Decision]], random: Any):
    before, decisions = world
    shuffled = [*decisions, *decisions[:2]]
    random.shuffle(shuffled)
    assert following(before, decisions, before.issuer, 0) == following(before, shuffled, before.issuer, 0)


@settings(max_examples=80, deadline=None)
@given(worlds())
def test_nothing_is_approved_without_enough_present_curators(world: tuple[Catalogue, list[Decision]]):
    before, decisions = world
    after = following(before, decisions, before.issuer, 0)
    present = {one.key for one in before.curators}
    for content in after.approved.keys() - before.approved.keys():
        said = {one.by for one in decisions if one.verdict == "approve" and one.content == content}
        assert len(said & present) >= before.threshold
    for content in before.approved.keys() - after.approved.keys():
        said = {one.by for one in decisions if one.verdict == "withdraw" and one.content == content}
        assert len(said & present) >= before.threshold
    names = [one.listing.name for one in after.approved.values()]
    assert len(names) == len(set(names))


@settings(max_examples=80, deadline=None)
@given(worlds())
def test_what_was_done_is_done_once_and_leaves_enough_curators(world: tuple[Catalogue, list[Decision]]):
    before, decisions = world
    after = following(before, decisions, before.issuer, 0)
    assert 1 <= after.threshold <= len(after.curators) <= MOST_CURATORS
    assert len({one.key for one in after.curators}) == len({one.name for one in after.curators}) == len(after.curators)
    rounds = 0
    while (again := following(after, decisions, after.issuer, 0)) is not after:
        # What claimed to have seen the next versions may speak now; nothing goes on for ever.
        after, rounds = again, rounds + 1
        assert rounds <= len(decisions) + 1


@settings(max_examples=12, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 3))
def test_every_node_computes_the_same_bytes(order: list[int], dropped: int):
    house = of_three()
    approvals: Approvals = house.approvals
    made = [
        house.decision("ann", "approve", approvals, name="tiny"),
        house.decision("bob", "approve", approvals, name="tiny"),
        house.decision("ann", "approve", approvals, name="other"),
        house.decision("cid", "reject", approvals, name="other"),
    ]
    junk = SignedDecision(made[dropped].body, bytes(64))
    one = candidate(house.bundle, made, house.issuer.public_key, 5)
    other = candidate(house.bundle, [junk, *(made[place] for place in order), junk], house.issuer.public_key, 5)
    assert one is not None
    assert one == other
    assert pin_of(house.bundle) == house.pin
