"""Whatever a hub, a peer or a minority of curators hands a node, it believes no catalogue but the network's newest."""

import copy
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from approval_house import Catalogues, approvals_of, listing, resigned, signer
from felloe.catalog.approval.metadata import complete, fits, renewed, sign_candidate
from felloe.catalog.approval.trusted import TrustedCatalog
from felloe.domain.approval import MOST_BUNDLE_BYTES, Approvals, Bundle, CandidateSignature
from felloe.domain.errors import FelloeError

TINY, OTHER = listing("tiny"), listing("other")
DAY = 86_400


async def refused(catalog: TrustedCatalog, offered: Bundle) -> str:
    """The code of the refusal; nothing has changed by it, not even for who starts anew."""
    before = catalog.approvals, catalog.bundle
    with pytest.raises(FelloeError) as caught:
        await catalog.take(offered)
    assert (catalog.approvals, catalog.bundle) == before
    return caught.value.code


def swapped(bundle: Bundle, kind: str, change: Callable[[dict[str, Any]], None], *keys: Any) -> Bundle:
    """A bundle with one file replaced, as somebody makes it who has these keys and no others."""
    return replace(bundle, **{kind: resigned(getattr(bundle, kind), change, *keys)})


def unchanged(_: dict[str, Any]) -> None:
    pass


async def test_a_fresh_node_believes_what_the_pinned_root_leads_to(tmp_path: Path):
    house = Catalogues("ann", "bob", "cid", threshold=2)
    house.approve("tiny", "ann", "cid")
    approvals = await house.trusted(tmp_path).take(house.bundle)
    assert approvals.standing(TINY.content) == "approved"
    assert [one.name for one in sorted(approvals.curators, key=lambda one: one.name)] == ["ann", "bob", "cid"]


async def test_what_was_believed_is_there_after_a_restart_without_anybody(tmp_path: Path):
    house = Catalogues("ann")
    house.approve("tiny", "ann")
    taken = await house.trusted(tmp_path).take(house.bundle)
    assert house.trusted(tmp_path).approvals == taken


async def test_an_older_catalogue_is_refused_and_the_same_one_changes_nothing(tmp_path: Path):
    house, catalog = Catalogues("ann"), None
    old = house.bundle
    house.approve("tiny", "ann")
    catalog = house.trusted(tmp_path)
    taken, heard = await catalog.take(house.bundle), list[Approvals]()
    catalog.on_change(heard.append)
    assert await refused(catalog, old) == "catalog_refused"
    assert await catalog.take(house.bundle) == taken
    assert await catalog.take(replace(house.bundle, targets=old.targets)) == taken
    assert not heard


async def test_a_rollback_by_the_hubs_own_key_is_refused(tmp_path: Path):
    house, catalog = Catalogues("ann"), None
    old = house.bundle
    house.approve("tiny", "ann")
    catalog = house.trusted(tmp_path)
    await catalog.take(house.bundle)
    # A hub signs what was true before with a new timestamp: snapshot and targets still go back.
    back = renewed(replace(old), house.issuer, time.time() + 2 * DAY)
    assert back is not None

    def newer(signed: dict[str, Any]) -> None:
        signed["version"] = 50

    assert await refused(catalog, swapped(back, "timestamp", newer, house.issuer)) == "catalog_refused"

    def snapshot_too(signed: dict[str, Any]) -> None:
        signed["version"] = 50

    snapshot = resigned(back.snapshot, snapshot_too, house.issuer)

    def names_it(signed: dict[str, Any]) -> None:
        signed["version"] = 50
        hashes = {"sha256": hashlib.sha256(snapshot).hexdigest()}
        signed["meta"]["snapshot.json"] = {"version": 50, "length": len(snapshot), "hashes": hashes}

    timestamp = resigned(back.timestamp, names_it, house.issuer)
    assert await refused(catalog, replace(back, snapshot=snapshot, timestamp=timestamp)) == "catalog_refused"


async def test_a_frozen_catalogue_expires_and_a_node_that_has_it_loads_nothing_new(tmp_path: Path):
    house = Catalogues("ann", now=time.time() - 8 * DAY)
    house.approve("tiny", "ann")
    assert await refused(house.trusted(tmp_path / "fresh"), house.bundle) == "catalog_expired"
    # A node that believed it in time has it still.
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "bundle").write_bytes(house.bundle.encode())
    catalog = house.trusted(tmp_path / "held")
    assert catalog.approvals is not None
    with pytest.raises(FelloeError) as caught:
        catalog.check(TINY.content, "tiny", time.time())
    assert caught.value.code == "catalog_expired"
    fresh = renewed(house.bundle, house.issuer, time.time())
    assert fresh is not None
    await catalog.take(fresh)
    catalog.check(TINY.content, "tiny", time.time())


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_that_is_an_hour_off_does_no_harm(tmp_path: Path, hours: int):
    house = Catalogues("ann", now=time.time() + hours * 3600)
    house.approve("tiny", "ann")
    catalog = house.trusted(tmp_path)
    await catalog.take(house.bundle)
    catalog.check(TINY.content, "tiny", time.time())
    house.now -= hours * 3600
    house.approve("other", "ann")
    await catalog.take(house.bundle)
    catalog.check(OTHER.content, "other", time.time())


async def test_parts_of_two_catalogues_do_not_mix(tmp_path: Path):
    house = Catalogues("ann")
    catalog = house.trusted(tmp_path)
    await catalog.take(house.bundle)
    house.approve("tiny", "ann")
    one = house.bundle
    house.approve("other", "ann")
    two = house.bundle
    for mixed in (
        replace(two, targets=one.targets),
        replace(two, snapshot=one.snapshot),
        replace(two, snapshot=one.snapshot, targets=one.targets),
        replace(one, targets=two.targets),
        replace(two, timestamp=two.snapshot),
        replace(two, targets=two.timestamp),
    ):
        assert await refused(catalog, mixed) == "catalog_refused"
    await catalog.take(two)


async def test_under_signed_targets_are_refused(tmp_path: Path):
    house = Catalogues("ann", "bob", "cid", threshold=2)
    catalog = house.trusted(tmp_path)
    await catalog.take(house.bundle)
    good = house.bundle
    house.approve("tiny", "ann", "bob")
    ann, bob, stranger = house.people["ann"], house.people["bob"], signer(50)
    for keys in ((), (ann,), (ann, ann), (ann, stranger), (stranger, signer(51)), (ann, house.issuer)):
        forged = _forged(house, keys)
        assert await refused(catalog, forged) == "catalog_refused"
    assert good != house.bundle
    await catalog.take(_forged(house, (ann, bob)))


def _forged(house: Catalogues, keys: tuple[Any, ...]) -> Bundle:
    """The newest targets signed by these, with snapshot and timestamp by the hubs, who are in league with them."""
    targets = resigned(house.bundle.targets, unchanged, *keys)

    def snapshot_names(signed: dict[str, Any]) -> None:
        hashes = {"sha256": hashlib.sha256(targets).hexdigest()}
        signed["meta"]["targets.json"] |= {"length": len(targets), "hashes": hashes}

    snapshot = resigned(house.bundle.snapshot, snapshot_names, house.issuer)

    def timestamp_names(signed: dict[str, Any]) -> None:
        hashes = {"sha256": hashlib.sha256(snapshot).hexdigest()}
        signed["meta"]["snapshot.json"] |= {"length": len(snapshot), "hashes": hashes}

    timestamp = resigned(house.bundle.timestamp, timestamp_names, house.issuer)
    return replace(house.bundle, targets=targets, snapshot=snapshot, timestamp=timestamp)


def test_hubs_make_nothing_of_too_few_signatures():
    house = Catalogues("ann", "bob", "cid", threshold=2)
    for name in ("ann", "bob"):
        house.decide(name, "approve", name="tiny")
    wanted = house.candidate()
    assert wanted is not None
    ann = sign_candidate(wanted, house.people["ann"])
    assert ann is not None
    assert sign_candidate(wanted, signer(50)) is None
    stranger = CandidateSignature(
        key=signer(50).public_key, digest=wanted.digest, root=b"", targets=signer(50).sign(wanted.targets)
    )
    posing = replace(stranger, key=house.people["bob"].public_key)
    old = replace(ann, key=house.people["bob"].public_key, digest=bytes(32))
    for more in ((), (ann,), (stranger,), (posing,), (old,)):
        assert complete(house.bundle, wanted, (ann, *more), house.issuer, house.now) is None
    assert [fits(wanted, one) for one in (ann, stranger, posing, old)] == [True, False, False, False]
    bob = sign_candidate(wanted, house.people["bob"])
    assert bob is not None
    assert complete(house.bundle, wanted, (ann, bob), signer(101), house.now) is None
    assert complete(house.bundle, wanted, (stranger, ann, posing, bob), house.issuer, house.now) is not None


async def test_a_removed_curator_counts_no_more(tmp_path: Path):
    house = Catalogues("ann", "bob", "cid", threshold=2)
    catalog = house.trusted(tmp_path)
    for by in ("ann", "bob"):
        house.decide(by, "remove_curator", name="cid", curator=house.people["cid"].public_key)
    assert house.sign("ann", "bob")
    await catalog.take(house.bundle)
    house.approve("tiny", "ann", "bob")
    assert await refused(catalog, _forged(house, (house.people["ann"], house.people["cid"]))) == "catalog_refused"
    await catalog.take(house.bundle)


async def test_a_root_that_too_few_signed_is_refused(tmp_path: Path):
    house = Catalogues("ann", "bob", "cid", threshold=2)
    catalog, held = house.trusted(tmp_path), house.bundle
    await catalog.take(held)
    for by in ("ann", "bob"):
        house.decide(by, "set_threshold", threshold=1)
    assert house.sign("ann", "bob")
    for keys in ((), (house.people["ann"],), (house.people["ann"], signer(50)), (signer(50), signer(51))):
        forged = resigned(house.bundle.roots[-1], unchanged, *keys)
        offered = replace(house.bundle, roots=(*held.roots, forged))
        assert await refused(catalog, offered) == "catalog_refused"
        assert await refused(house.trusted(tmp_path / "fresh"), offered) == "catalog_refused"
    await catalog.take(house.bundle)


async def test_a_new_root_needs_the_old_curators_and_the_new_ones(tmp_path: Path):
    house = Catalogues("ann", "bob", threshold=2)
    catalog, held = house.trusted(tmp_path), house.bundle
    await catalog.take(held)
    mallory, trudy = signer(50), signer(51)

    def take_over(signed: dict[str, Any]) -> None:
        mine = _keys_of(Catalogues("mallory", now=1.0), mallory, trudy)
        signed["version"] += 1
        signed["keys"] |= mine
        for role in ("root", "targets"):
            signed["roles"][role] = {"keyids": sorted(mine), "threshold": 2}

    for keys in ((mallory, trudy), (mallory, trudy, house.people["ann"])):
        forged = resigned(held.roots[-1], take_over, *keys)
        assert await refused(catalog, replace(held, roots=(*held.roots, forged))) == "catalog_refused"


def _keys_of(_: Catalogues, *people: Any) -> dict[str, Any]:
    from felloe.catalog.approval.tuf_files import tuf_key

    keys = [tuf_key(one.public_key) for one in people]
    return {key.keyid: key.to_dict() for key in keys}


async def test_one_key_under_two_names_is_one_curator(tmp_path: Path):
    house = Catalogues("ann")
    key = house.people["ann"]

    def doubled(signed: dict[str, Any]) -> None:
        (keyid,) = signed["roles"]["root"]["keyids"]
        signed["version"] = 2
        signed["keys"]["f" * 64] = copy.deepcopy(signed["keys"][keyid])
        signed["felloe"]["names"]["f" * 64] = "ann again"
        signed["felloe"]["since"]["f" * 64] = 2
        for role in ("root", "targets"):
            signed["roles"][role]["keyids"].append("f" * 64)

    forged = resigned(house.bundle.roots[0], doubled, key)
    offered = replace(house.bundle, roots=(*house.bundle.roots, forged))
    assert await refused(house.trusted(tmp_path), offered) == "catalog_refused"


async def test_only_the_pinned_first_root_is_believed(tmp_path: Path):
    house, evil = Catalogues("ann"), Catalogues("ann", now=time.time() - 60)
    assert await refused(house.trusted(tmp_path), evil.bundle) == "catalog_refused"
    unpinned = TrustedCatalog(tmp_path / "unpinned", b"")
    unpinned.open()
    assert await refused(unpinned, house.bundle) == "catalog_refused"
    with pytest.raises(FelloeError) as caught:
        unpinned.check(TINY.content, "tiny", time.time())
    assert caught.value.code == "not_approved"
    # The roots after the first are nobody's before they are verified.
    later = replace(house.bundle, roots=(house.bundle.roots[0], evil.bundle.roots[0]))
    assert await refused(house.trusted(tmp_path), later) == "catalog_refused"


async def test_a_swapped_manifest_is_not_the_approved_one(tmp_path: Path):
    house = Catalogues("ann")
    envelope = b'{"version":1,"key":"","manifest":"","signature":""}'
    house.decide(
        "ann", "approve", listing=replace(TINY, sha256=hashlib.sha256(envelope).digest(), length=len(envelope))
    )
    assert house.sign("ann")
    catalog = house.trusted(tmp_path)
    await catalog.take(house.bundle)
    for content, offered, code in (
        (TINY.content, envelope[:-1] + b" ", "bad_manifest"),
        (TINY.content, envelope + b" ", "bad_manifest"),
        (TINY.content, b"", "bad_manifest"),
        (OTHER.content, envelope, "not_approved"),
        # It is the approved one, and then it must also be a manifest.
        (TINY.content, envelope, "bad_manifest"),
    ):
        with pytest.raises(FelloeError) as caught:
            catalog.check_envelope(content, offered)
        assert caught.value.code == code


def test_the_gate_names_the_reason():
    house = Catalogues("ann")
    house.approve("tiny", "ann")
    house.decide("ann", "withdraw", name="tiny", reason="it repeats its prompts")
    house.sign("ann")
    house.approve("other", "ann")
    for content, name, code, words in (
        (TINY.content, "tiny", "model_withdrawn", "it repeats its prompts"),
        (listing("new").content, "new", "not_approved", "felloe approve new"),
        (listing("new").content, "other", "not_approved", "another content"),
    ):
        with pytest.raises(FelloeError) as caught:
            house.approvals.check(content, name, house.now)
        assert caught.value.code == code
        assert words in caught.value.detail
    house.approvals.check(OTHER.content, "other", house.now)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"x" * (MOST_BUNDLE_BYTES + 1),
        msgspec.msgpack.encode([[], b"", b"", b""]),
        msgspec.msgpack.encode([[b"a"] * 129, b"", b"", b""]),
        msgspec.msgpack.encode({"roots": [b"a"]}),
        b"\x91" * 10_000,
    ],
)
def test_what_is_no_bundle_is_refused_unread(data: bytes):
    with pytest.raises(FelloeError) as caught:
        Bundle.decode(data)
    assert caught.value.code == "catalog_refused"


async def test_a_bundle_that_is_too_large_is_never_made_and_an_endless_one_never_taken(tmp_path: Path):
    house = Catalogues("ann")
    large = replace(house.bundle, targets=b" " * MOST_BUNDLE_BYTES)
    with pytest.raises(FelloeError):
        large.encode()
    catalog = house.trusted(tmp_path)
    for padded in (large, replace(house.bundle, timestamp=house.bundle.timestamp + b" " * MOST_BUNDLE_BYTES)):
        assert await refused(catalog, padded) == "catalog_refused"


@pytest.mark.parametrize("kind", ["targets", "snapshot", "timestamp", "roots"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"{}",
        b'{"signed":{"_type":"timestamp"},"signatures":[]}',
        b"[" * 100_000,
        b'{"signed":{"_type":"root","version":' + b"9" * 5000 + b'},"signatures":[]}',
        b'{"signed":1,"signatures":[{"keyid":1,"sig":2}]}',
        b"\xff\xfe",
    ],
)
async def test_files_that_are_none_of_tufs_are_refused(tmp_path: Path, kind: str, data: bytes):
    house = Catalogues("ann")
    value: Any = (house.bundle.roots[0], data) if kind == "roots" else data
    assert await refused(house.trusted(tmp_path), replace(house.bundle, **{kind: value})) == "catalog_refused"


async def test_a_damaged_file_counts_as_none_and_is_replaced(tmp_path: Path):
    house = Catalogues("ann")
    for damage in (b"", b"garbage", house.bundle.encode()[:-5], Catalogues("bob").bundle.encode()):
        (tmp_path / "bundle").write_bytes(damage)
        (tmp_path / "trial-left").mkdir()
        catalog = house.trusted(tmp_path)
        assert catalog.approvals is None
        assert not (tmp_path / "trial-left").exists()
        await catalog.take(house.bundle)
        assert house.trusted(tmp_path).approvals == approvals_of(house.bundle)


async def test_new_hub_keys_are_believed_only_through_the_curators(tmp_path: Path):
    house = Catalogues("ann")
    catalog = house.trusted(tmp_path)
    await catalog.take(house.bundle)
    thief = signer(101)
    forged = swapped(house.bundle, "timestamp", lambda signed: signed.update(version=9), thief)
    assert await refused(catalog, forged) == "catalog_refused"
    house.issuer = thief
    assert house.sign("ann")
    await catalog.take(house.bundle)
    # Those of before are nobody's now.
    old = swapped(house.bundle, "timestamp", lambda signed: signed.update(version=9), signer(100))
    assert await refused(catalog, old) == "catalog_refused"


async def test_what_a_newer_version_says_besides_is_passed_over(tmp_path: Path):
    house = Catalogues("ann")
    house.approve("tiny", "ann")

    def more(signed: dict[str, Any]) -> None:
        signed["felloe"]["of_a_newer_version"] = 1
        for target in signed["targets"].values():
            target["custom"]["of_a_newer_version"] = 1

    targets = resigned(house.bundle.targets, more, house.people["ann"])
    house.bundle = replace(house.bundle, targets=targets)
    approvals = await house.trusted(tmp_path).take(_forged_as_is(house))
    assert approvals.standing(TINY.content) == "approved"


async def test_targets_that_delegate_are_not_this_programs(tmp_path: Path):
    house = Catalogues("ann")

    def delegate(signed: dict[str, Any]) -> None:
        signed["delegations"] = {"keys": {}, "roles": []}

    targets = resigned(house.bundle.targets, delegate, house.people["ann"])
    bundle = replace(house.bundle, targets=targets)
    house.bundle = bundle
    assert await refused(house.trusted(tmp_path), _forged_as_is(house)) == "catalog_refused"


def _forged_as_is(house: Catalogues) -> Bundle:
    return _forged(house, (house.people["ann"],))
