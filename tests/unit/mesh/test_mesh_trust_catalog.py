"""The trust list names the network's catalogue once and for ever, and who signs for the hubs now."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.mesh.rotation import found, rotate, rotate_root
from felloe.mesh.trust import accept, extend, read

NOW = 1_800_000_000.0
PIN = b"p" * 32


def test_the_founding_names_the_catalogue_that_the_hubs_key_signed():
    keys = found(NOW, lambda authority: authority.public_key)
    assert keys.trust.catalog == keys.trust.issuer_key == keys.authority.public_key
    Ed25519PublicKey.from_public_bytes(keys.trust.issuer_key).verify(keys.authority.sign(b"x"), b"x")
    assert read(keys.trust.encoded).catalog == keys.trust.catalog


def test_every_replacement_of_keys_carries_it_on():
    first = found(NOW, lambda _: PIN)
    second = rotate(first, NOW, 60.0)
    third = rotate_root(second, NOW + 1, 60.0)
    assert third.trust.catalog == PIN
    assert accept(third.trust.encoded, first.trust).issuer_key == third.authority.public_key
    assert third.trust.issuer_key not in (first.trust.issuer_key, second.trust.issuer_key)


def test_no_later_list_names_another_catalogue():
    keys = found(NOW, lambda _: PIN)
    for other in (b"o" * 32, b""):
        with pytest.raises(FelloeError) as caught:
            extend(keys.trust, replace(keys.trust.list, version=2, catalog=other), [keys.root])
        assert caught.value.code == "trust_refused"
    with pytest.raises(FelloeError):
        extend(None, replace(keys.trust.list, catalog=b"short"), [keys.root])


def test_a_network_of_an_older_version_has_none_until_its_root_names_one():
    keys = found(NOW)
    assert keys.trust.catalog == b""
    later = extend(keys.trust, replace(keys.trust.list, version=2, catalog=PIN), [keys.root])
    assert later.catalog == PIN
