"""A curator's key is private to its owner, and its line says who it is and no more."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from felloe.catalog.approval.curator_key import CuratorKey, curator_text, read_curator
from felloe.domain.errors import FelloeError


def test_a_key_is_kept_for_its_owner_alone_and_signs_as_the_same_one_again(tmp_path: Path):
    path = tmp_path / "curator.pem"
    assert CuratorKey.load(path) is None
    made = CuratorKey.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    again = CuratorKey.load(path)
    assert again is not None
    Ed25519PublicKey.from_public_bytes(made.public_key).verify(again.sign(b"x"), b"x")


def test_a_key_is_never_made_over_another(tmp_path: Path):
    path = tmp_path / "curator.pem"
    first = CuratorKey.create(path)
    with pytest.raises(FileExistsError):
        CuratorKey.create(path)
    kept = CuratorKey.load(path)
    assert kept is not None and kept.public_key == first.public_key


def test_a_damaged_key_or_one_that_others_can_read_is_refused_without_quoting_it(tmp_path: Path):
    path = tmp_path / "curator.pem"
    other = generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for content in (b"", b"SECRET", other):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(FelloeError) as caught:
            CuratorKey.load(path)
        assert (caught.value.code, "SECRET" in str(caught.value)) == ("bad_state", False)
    path.unlink()
    CuratorKey.create(path)
    path.chmod(0o644)
    with pytest.raises(FelloeError) as caught:
        CuratorKey.load(path)
    assert "can be read by others" in caught.value.detail


def test_the_line_of_a_curator_is_read_as_it_was_written():
    assert read_curator(f" {curator_text('Ann B.', bytes(range(32)))}\n") == ("Ann B.", bytes(range(32)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "curator:",
        "curator:ann",
        "ann:" + "ab" * 32,
        "curator:ann:" + "ab" * 31,
        "curator:ann:" + "xy" * 32,
        "curator::" + "ab" * 32,
        "curator:a\nb:" + "ab" * 32,
        "curator:" + "a" * 65 + ":" + "ab" * 32,
        "curator:a:b:" + "ab" * 32,
        "curator:ann:" + "ab" * 5000,
    ],
)
def test_what_is_no_curators_line_is_refused(text: str):
    with pytest.raises(FelloeError) as caught:
        read_curator(text)
    assert caught.value.code == "invalid_value"
