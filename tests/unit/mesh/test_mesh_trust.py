"""The trust list: only a root that a node trusts changes it, never backwards, and joiners begin at their pin."""

import time
from base64 import b64decode, b64encode
from collections.abc import Sequence
from random import Random

import msgspec
import pytest
from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.root_key import RootKey
from felloe.mesh.rotation import Keys, found, rotate, rotate_root
from felloe.mesh.trust import LARGEST_TRUST, Trust, Trusted, TrustList, accept, extend, for_pin, newer, read

NOW = time.time()
DAY = 86400.0


def code_of(error: pytest.ExceptionInfo[FelloeError]) -> str:
    return error.value.code


def refused(offered: bytes, held: Trust) -> str:
    with pytest.raises(FelloeError) as caught:
        accept(offered, held)
    return code_of(caught)


def signed(new: TrustList, *signers: RootKey) -> bytes:
    """A list that these roots have signed, whether it makes sense or not."""
    body = msgspec.json.encode(new)
    signatures = [{"pin": b64(one.pin), "signature": b64(one.sign(b"felloe trust 1\0" + body))} for one in signers]
    return msgspec.json.encode({"format": 1, "lists": [{"body": b64(body), "signatures": signatures}]})


def b64(data: bytes) -> str:
    return b64encode(data).decode()


def joined(*chains: bytes) -> bytes:
    """Several signed lists as one chain."""
    lists = [one for chain in chains for one in msgspec.json.decode(chain)["lists"]]
    return msgspec.json.encode({"format": 1, "lists": lists})


def test_a_list_that_the_held_root_signed_replaces_the_one_held() -> None:
    first = found(NOW)
    second = rotate(first, NOW + 1, 0)
    assert accept(second.trust.encoded, first.trust) == second.trust
    assert (second.trust.version, second.trust.network) == (2, first.trust.network)
    assert second.trust.issuers(NOW + 1) == second.authority.issuer != first.authority.issuer


def test_an_older_list_is_refused_also_with_a_good_signature() -> None:
    first = found(NOW)
    second = rotate(first, NOW, 0)
    assert refused(first.trust.encoded, second.trust) == "trust_refused"
    assert newer(first.trust.encoded, second.trust) is second.trust, "a hub that lags behind is no attack"


def test_the_same_list_again_changes_nothing_and_another_of_its_version_is_refused() -> None:
    first = found(NOW)
    one, other = rotate(first, NOW, 0), rotate(first, NOW, 0)
    assert accept(one.trust.encoded, one.trust) is one.trust
    assert refused(other.trust.encoded, one.trust) == "trust_refused"


def test_another_networks_list_is_refused() -> None:
    mine, other = found(NOW), rotate(found(NOW), NOW, 0)
    assert refused(other.trust.encoded, mine.trust) == "wrong_network"
    with pytest.raises(FelloeError, match="wrong_network"):
        newer(other.trust.encoded, mine.trust)


def next_list(keys: Keys, root: RootKey, **changes: object) -> TrustList:
    """What somebody would sign who wants to put `root` and its issuer in the place of the network's."""
    issuer = NetworkAuthority.create(root, NOW).issuer
    wanted: dict[str, object] = {
        "version": keys.trust.version + 1,
        "roots": (Trusted(root.certificate),),
        "issuers": (Trusted(issuer),),
    }
    return replace(keys.trust.list, **(wanted | changes))


def test_a_root_that_is_not_trusted_cannot_sign_itself_in() -> None:
    keys = found(NOW)
    stranger = RootKey.create(NOW, keys.trust.network)
    assert refused(signed(next_list(keys, stranger), stranger), keys.trust) == "trust_refused"


def test_a_signature_under_a_trusted_roots_name_counts_for_nothing() -> None:
    keys = found(NOW)
    stranger = RootKey.create(NOW, keys.trust.network)
    chain = msgspec.json.decode(signed(next_list(keys, stranger), stranger))
    chain["lists"][0]["signatures"][0]["pin"] = b64(keys.root.pin)
    assert refused(msgspec.json.encode(chain), keys.trust) == "trust_refused"


def test_an_issuer_cannot_sign_a_list() -> None:
    keys = found(NOW)
    stolen = RootKey.create(NOW, keys.trust.network)
    issuer_key = msgspec.json.decode(keys.authority.to_bytes())["issuer"]
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(b64decode(issuer_key))
    new = next_list(keys, stolen)
    body = msgspec.json.encode(new)
    for pin in (keys.root.pin, stolen.pin):
        signature = {"pin": b64(pin), "signature": b64(key.sign(b"felloe trust 1\0" + body))}
        chain = {"format": 1, "lists": [{"body": b64(body), "signatures": [signature]}]}
        assert refused(msgspec.json.encode(chain), keys.trust) == "trust_refused"


def test_a_root_of_another_network_may_not_be_named() -> None:
    keys = found(NOW)
    other = found(NOW).root
    assert refused(signed(next_list(keys, other), keys.root), keys.trust) == "trust_refused"


def test_an_issuer_of_no_listed_root_may_not_be_named() -> None:
    keys = found(NOW)
    elsewhere = RootKey.create(NOW, keys.trust.network)
    issuers = (Trusted(NetworkAuthority.create(elsewhere, NOW).issuer),)
    wrong = replace(keys.trust.list, version=2, issuers=issuers)
    assert refused(signed(wrong, keys.root), keys.trust) == "trust_refused"
    member = keys.authority.issue(bytes(range(32)), "hub", NOW).certificate.split("-----END")[0]
    leaf = replace(keys.trust.list, version=2, issuers=(Trusted(member + "-----END CERTIFICATE-----\n"),))
    assert refused(signed(leaf, keys.root), keys.trust) == "trust_refused"


@pytest.mark.parametrize(
    "change",
    [
        {"roots": ()},
        {"issuers": ()},
        {"version": 0},
        {"version": -1},
        {"version": 1 << 60},
        {"version": "3"},
        {"former": (b"short",)},
        {"former": (bytes(32),) * 17},
        {"roots": None},
        {"network": "x"},
    ],
)
def test_a_list_that_says_too_little_or_too_much_is_refused(change: dict[str, object]) -> None:
    keys = found(NOW)
    wrong = replace(keys.trust.list, **({"version": 2} | change))
    assert refused(signed(wrong, keys.root), keys.trust) in ("trust_refused", "wrong_network")


def test_a_list_names_one_current_root_and_one_current_issuer() -> None:
    keys = found(NOW)
    other = RootKey.create(NOW, keys.trust.network)
    both = (Trusted(keys.root.certificate), Trusted(other.certificate))
    ended = (Trusted(keys.authority.issuer, int(NOW + DAY)),)
    twice = (Trusted(keys.root.certificate), Trusted(keys.root.certificate, int(NOW + DAY)))
    two_in_one = (Trusted(keys.root.certificate + other.certificate),)
    for change in ({"roots": both}, {"issuers": ended}, {"roots": twice}, {"roots": two_in_one}):
        wrong = replace(keys.trust.list, version=2, **change)
        assert refused(signed(wrong, keys.root), keys.trust) == "trust_refused"


@pytest.mark.parametrize(
    "offered",
    [
        b"",
        b"{}",
        b"null",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"format": 1, "lists": []}',
        b'{"format": 2, "lists": []}',
        b'{"format": 1, "lists": [{"body": "e30=", "signatures": []}]}',
        b'{"format": 1, "lists": [{"body": "/w==", "signatures": []}]}',
        b"x" * (LARGEST_TRUST + 1),
        "\ud800".encode(errors="surrogatepass"),
    ],
)
def test_what_is_no_list_is_refused(offered: bytes) -> None:
    held = found(NOW).trust
    assert refused(offered, held) == "trust_refused"
    with pytest.raises(FelloeError) as caught:
        for_pin(offered, held.pin, NOW)
    assert code_of(caught) == "trust_refused"
    with pytest.raises(FelloeError, match="bad_state"):
        read(offered)


def test_a_damaged_list_fails_in_no_other_way_than_refusal() -> None:
    random = Random(8471)
    keys = found(NOW)
    good = rotate_root(keys, NOW, DAY).trust.encoded
    for _ in range(1500):
        wrong = bytearray(good)
        place = random.randrange(len(wrong))
        wrong[place : place + random.randint(0, 2)] = random.randbytes(random.randint(0, 2))
        if bytes(wrong) == good:
            continue
        for act in (lambda data: accept(data, keys.trust), lambda data: for_pin(data, keys.root.pin, NOW), read):
            try:
                found_trust = act(bytes(wrong))
            except FelloeError:
                continue
            # What was changed is not part of what is signed: white space, or the signature that was not needed.
            assert found_trust.list == read(good).list


def test_many_or_endless_lists_are_refused() -> None:
    keys = found(NOW)
    chains = [rotate(keys, NOW, 0).trust.encoded] * 9
    assert refused(joined(*chains), keys.trust) == "trust_refused"
    assert refused(joined(chains[0], chains[0]), keys.trust) == "trust_refused", "they do not ascend"


def test_tls_trusts_old_issuers_until_the_overlap_ends() -> None:
    first = found(NOW)
    second = rotate(first, NOW, DAY)
    assert second.trust.issuers(NOW + 1) == second.authority.issuer + first.authority.issuer
    assert second.trust.issuers(NOW + DAY) == second.authority.issuer
    at_once = rotate(second, NOW + 2, 0)
    assert at_once.trust.issuers(NOW + 3) == at_once.authority.issuer, "without an overlap all older ones go"


def test_an_overlap_is_never_made_longer_by_the_next_one() -> None:
    first = found(NOW)
    second = rotate(first, NOW, 3600)
    third = rotate(second, NOW + 60, DAY)
    assert first.authority.issuer in third.trust.issuers(NOW + 3500)
    assert first.authority.issuer not in third.trust.issuers(NOW + 3700)
    assert second.authority.issuer in third.trust.issuers(NOW + 3700)


def test_keys_that_overlap_are_bounded_and_the_owner_is_told() -> None:
    keys = found(NOW)
    for _ in range(5):
        keys = rotate(keys, NOW, DAY)
    with pytest.raises(FelloeError, match="overlap") as caught:
        rotate(keys, NOW, DAY)
    assert code_of(caught) == "forbidden"
    assert rotate(keys, NOW, 0).trust.version == keys.trust.version + 1
    assert rotate(keys, NOW + DAY, DAY).trust.version == keys.trust.version + 1
    for wrong in (-1, 31 * DAY, float("nan"), float("inf")):
        with pytest.raises(FelloeError, match="invalid_value"):
            rotate(keys, NOW, wrong)


@pytest.mark.parametrize("overlap", [0.0, DAY])
def test_the_network_keeps_its_id_when_its_root_is_replaced(overlap: float) -> None:
    first = found(NOW)
    second = rotate_root(first, NOW, overlap)
    third = rotate_root(second, NOW + 2 * DAY, overlap)
    assert third.trust.network == first.trust.network == third.root.network == third.authority.network
    assert len({first.root.pin, second.root.pin, third.root.pin}) == 3
    assert third.trust.pin == third.root.pin


@pytest.mark.parametrize("overlap", [0.0, DAY])
def test_a_node_that_slept_through_many_replacements_still_finds_its_way(overlap: float) -> None:
    keys = found(NOW)
    slept = [keys.trust]
    for day in range(1, 6):
        keys = rotate_root(keys, NOW + day * DAY, overlap)
        slept.append(keys.trust)
        keys = rotate(keys, NOW + day * DAY + 1, overlap)
        slept.append(keys.trust)
    for held in slept:
        assert accept(keys.trust.encoded, held).list == keys.trust.list
    assert len(keys.trust.encoded) < LARGEST_TRUST / 2


def test_a_chain_with_a_link_missing_is_refused() -> None:
    first = found(NOW)
    second = rotate_root(first, NOW, 0)
    third = rotate_root(second, NOW, 0)
    lists = msgspec.json.decode(third.trust.encoded)["lists"]
    alone = msgspec.json.encode({"format": 1, "lists": lists[-1:]})
    assert refused(alone, first.trust) == "trust_refused"
    assert accept(alone, second.trust).list == third.trust.list


def test_a_root_that_was_replaced_signs_nothing_that_counts_not_even_while_its_tokens_are_good() -> None:
    first = found(NOW)
    second = rotate_root(first, NOW, DAY)
    stranger = RootKey.create(NOW, first.trust.network)
    forged = next_list(second, stranger)
    assert refused(signed(forged, first.root), second.trust) == "trust_refused"
    assert refused(signed(forged, first.root, stranger), second.trust) == "trust_refused"
    for act in (rotate, rotate_root):
        with pytest.raises(FelloeError, match="replaced") as caught:
            act(second._replace(root=first.root), NOW, 0)
        assert code_of(caught) == "forbidden"
    with pytest.raises(FelloeError, match="wrong_network"):
        rotate(second._replace(root=found(NOW).root), NOW, 0)


def test_a_signature_that_nobody_can_check_is_not_carried_along() -> None:
    keys = found(NOW)
    new = rotate(keys, NOW, 0).trust
    chain = msgspec.json.decode(new.encoded)
    chain["lists"][0]["signatures"].append({"pin": b64(bytes(32)), "signature": b64(bytes(64))})
    assert refused(msgspec.json.encode(chain), keys.trust) == "trust_refused"


def joins(offered: bytes, pin: bytes, now: float = NOW) -> str:
    try:
        return f"version {for_pin(offered, pin, now).version}"
    except FelloeError as error:
        return error.code


def test_a_joiner_trusts_the_list_that_its_pinned_root_signed() -> None:
    keys = found(NOW)
    later = rotate(keys, NOW, 0)
    assert for_pin(later.trust.encoded, keys.root.pin, NOW) == later.trust
    assert joins(later.trust.encoded, found(NOW).root.pin) == "wrong_network"
    assert joins(later.trust.encoded, b"") == "wrong_network"


def test_a_joiner_is_not_fooled_by_a_list_that_only_names_its_pinned_root() -> None:
    keys = found(NOW)
    attacker = RootKey.create(NOW, keys.trust.network)
    issuer = Trusted(NetworkAuthority.create(attacker, NOW).issuer)
    named = (Trusted(attacker.certificate), Trusted(keys.root.certificate, int(NOW + DAY)))
    forged = replace(keys.trust.list, version=2, roots=named, issuers=(issuer,))
    assert joins(signed(forged, attacker), keys.root.pin) == "wrong_network"
    fooling = replace(forged, roots=(Trusted(keys.root.certificate), Trusted(attacker.certificate, int(NOW + DAY))))
    assert joins(signed(fooling, attacker), keys.root.pin) == "wrong_network"
    assert joins(joined(keys.trust.encoded, signed(forged, attacker)), keys.root.pin) == "trust_refused"


def test_a_token_of_the_old_root_is_good_for_the_overlap_and_then_refused_by_name() -> None:
    first = found(NOW)
    second = rotate_root(first, NOW, DAY)
    later = rotate(second, NOW + 60, DAY)
    for keys in (second, later):
        assert joins(keys.trust.encoded, first.root.pin, NOW + 100) == f"version {keys.trust.version}"
        assert joins(keys.trust.encoded, second.root.pin, NOW + 100) == f"version {keys.trust.version}"
        with pytest.raises(FelloeError, match="from before the network's root was replaced") as caught:
            for_pin(keys.trust.encoded, first.root.pin, NOW + DAY)
        assert code_of(caught) == "token_refused"
    much_later = rotate_root(rotate(later, NOW + 2 * DAY, 0), NOW + 2 * DAY, 0)
    assert joins(much_later.trust.encoded, first.root.pin) == "token_refused"
    assert joins(much_later.trust.encoded, second.root.pin) == "token_refused"
    at_once = rotate_root(first, NOW, 0)
    assert joins(at_once.trust.encoded, first.root.pin) == "token_refused"
    assert joins(at_once.trust.encoded, found(NOW).root.pin) == "wrong_network"


def test_a_node_that_joined_late_shows_others_the_way_from_earlier_roots() -> None:
    first = found(NOW)
    keys = first
    for _ in range(3):
        keys = rotate_root(keys, NOW, 0)
    late = for_pin(keys.trust.encoded, keys.root.pin, NOW)
    assert accept(late.encoded, first.trust).list == keys.trust.list


def test_a_joiner_drops_a_history_that_its_root_does_not_vouch_for() -> None:
    keys = rotate_root(found(NOW), NOW, 0)
    invented = found(NOW)
    attacker = RootKey.create(NOW, keys.trust.network)
    issuer = Trusted(NetworkAuthority.create(attacker, NOW).issuer)
    past = replace(keys.trust.list, version=1, roots=(Trusted(attacker.certificate),), issuers=(issuer,), former=())
    trust = for_pin(joined(signed(past, attacker), keys.trust.encoded), keys.root.pin, NOW)
    assert trust == keys.trust
    assert joins(joined(invented.trust.encoded, keys.trust.encoded), keys.root.pin) == "trust_refused"


def test_former_roots_are_remembered_in_bounds() -> None:
    keys = first = found(NOW)
    for _ in range(20):
        keys = rotate_root(keys, NOW, 0)
    assert len(keys.trust.list.former) == 16
    assert len(keys.trust.encoded) < LARGEST_TRUST
    assert joins(keys.trust.encoded, first.root.pin) == "wrong_network", "forgotten by now"


def test_what_was_stored_is_read_back_and_a_change_on_disk_is_found() -> None:
    keys = rotate(rotate_root(found(NOW), NOW, DAY), NOW, DAY)
    assert read(keys.trust.encoded) == keys.trust
    body = keys.trust.encoded.replace(b64(msgspec.json.encode(keys.trust.list)).encode()[:40], b"A" * 40)
    with pytest.raises(FelloeError, match="bad_state"):
        read(body)


def test_nothing_is_signed_that_nobody_would_accept() -> None:
    keys = found(NOW)
    stranger = RootKey.create(NOW, keys.trust.network)
    signers: Sequence[RootKey] = [stranger]
    with pytest.raises(FelloeError):
        extend(keys.trust, next_list(keys, stranger), signers)
    with pytest.raises(FelloeError):
        extend(None, next_list(keys, stranger), [keys.root])
