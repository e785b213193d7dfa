"""The root key: exported so that a stolen file is not worth much, and that a wrong one is refused by name."""

import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from felloe.domain.errors import FelloeError
from felloe.domain.ids import id_from_public_key
from felloe.mesh.certificates import read_chain
from felloe.mesh.root_key import RootKey
from felloe.mesh.rotation import found, rotate, rotate_root

NOW = time.time()
PASSPHRASE = "correct horse battery"


def refusal(data: bytes, passphrase: str | None = PASSPHRASE) -> FelloeError:
    with pytest.raises(FelloeError) as caught:
        RootKey.load(data, passphrase)
    assert not passphrase or passphrase not in str(caught.value) + repr(caught.value.__cause__)
    return caught.value


@pytest.fixture(scope="module")
def root() -> RootKey:
    return RootKey.create(NOW)


@pytest.fixture(scope="module")
def exported(root: RootKey) -> bytes:
    return root.export(PASSPHRASE)


def test_the_first_root_gives_the_network_its_id(root: RootKey) -> None:
    key = read_chain(root.certificate)[0].public_key()
    assert root.network == id_from_public_key(key.public_bytes_raw())
    assert RootKey.create(NOW, root.network).network == root.network


def test_it_comes_back_from_its_export_and_still_signs_for_the_network(exported: bytes) -> None:
    keys = found(NOW)
    again = RootKey.load(keys.root.export(PASSPHRASE), PASSPHRASE)
    assert (again.network, again.pin, again.certificate) == (keys.root.network, keys.root.pin, keys.root.certificate)
    assert rotate(keys._replace(root=again), NOW, 0).trust.version == 2
    replaced = rotate_root(keys, NOW, 0)
    back = RootKey.load(replaced.root.export(PASSPHRASE), PASSPHRASE)
    assert (back.network, back.pin) == (keys.root.network, replaced.root.pin)


def test_the_export_tells_no_key_without_the_passphrase(root: RootKey, exported: bytes) -> None:
    raw = root._key.private_bytes_raw()
    assert raw not in exported
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in exported
    assert exported.endswith(root.certificate.encode())
    assert root.export(PASSPHRASE) != exported, "salt and vector are new each time"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")
def test_openssl_reads_the_export(root: RootKey, exported: bytes, tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_bytes(exported)
    command = ["openssl", "pkey", "-in", str(tmp_path / "root.pem"), "-passin", "stdin", "-pubout"]
    done = subprocess.run(command, input=PASSPHRASE.encode() + b"\n", capture_output=True, check=True)
    certificate = ["openssl", "x509", "-in", str(tmp_path / "root.pem"), "-noout", "-pubkey"]
    assert done.stdout == subprocess.run(certificate, capture_output=True, check=True).stdout
    wrong = subprocess.run(command, input=b"another one\n", capture_output=True, check=False)
    assert wrong.returncode


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")
def test_the_passphrase_is_stretched_by_scrypt(exported: bytes) -> None:
    done = subprocess.run(["openssl", "asn1parse"], input=exported, capture_output=True, check=True)
    assert b"scrypt" in done.stdout
    assert b":aes-256-cbc" in done.stdout
    assert b"PBKDF2" not in done.stdout


def test_a_wrong_or_missing_passphrase_is_named(root: RootKey, exported: bytes) -> None:
    assert refusal(exported, "correct horse battery ").code == "bad_passphrase"
    assert "does not open" in refusal(exported, "another passphrase").detail
    assert "needs its passphrase" in refusal(exported, "").detail
    assert "needs its passphrase" in refusal(exported, None).detail
    assert "not encrypted" in refusal(root.to_bytes()).detail


def test_a_wrong_passphrase_that_seems_to_open_the_key_is_named(root: RootKey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its padding is right by chance, what is in it is not: as after one wrong passphrase in 256."""
    no_key = SimpleNamespace(private_bytes=lambda *_: b"no key, but as long as one".ljust(48))
    with monkeypatch.context() as patch:
        patch.setattr(root, "_key", no_key)
        exported = root.export(PASSPHRASE)
    assert refusal(exported).code == "bad_passphrase"


@pytest.mark.parametrize("passphrase", ["", "short", "x" * 1025])
def test_an_unfit_passphrase_is_not_taken(root: RootKey, passphrase: str) -> None:
    with pytest.raises(FelloeError) as caught:
        root.export(passphrase)
    assert caught.value.code == "invalid_value"


def test_any_script_makes_a_passphrase(root: RootKey) -> None:
    assert RootKey.load(root.export("påssørd – 鍵鍵鍵"), "påssørd – 鍵鍵鍵").pin == root.pin


def test_a_damaged_file_is_refused(root: RootKey, exported: bytes) -> None:
    key_only = exported[: exported.index(b"-----BEGIN CERT")]
    for wrong in (
        b"",
        b"\xff",
        b"x" * 20_000,
        key_only,
        root.certificate.encode(),
        exported[:-200],
        exported.replace(b"MII", b"AAA"),
        exported[:60] + b"AAAA" + exported[64:],
        exported + root.certificate.encode(),
        exported.replace(b"ENCRYPTED PRIVATE KEY", b"PRIVATE KEY"),
    ):
        assert refusal(wrong).code == "bad_state"


def test_the_key_of_one_root_under_the_certificate_of_another_is_refused(root: RootKey, exported: bytes) -> None:
    key_only = exported[: exported.index(b"-----BEGIN CERT")]
    other = RootKey.create(NOW, root.network)
    assert "do not belong together" in refusal(key_only + other.certificate.encode()).detail


def test_a_key_of_another_kind_is_refused(root: RootKey) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert "Ed25519" in refusal(pem + root.certificate.encode(), None).detail


def test_a_certificate_that_is_no_root_is_refused() -> None:
    keys = found(NOW)
    member = Ed25519PrivateKey.generate()
    pem = member.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    chain = keys.authority.issue(member.public_key().public_bytes_raw(), "hub", NOW).certificate
    leaf = chain[: chain.index("-----END CERTIFICATE-----") + 26]
    for certificate in (leaf, keys.authority.issuer):
        assert refusal(pem + certificate.encode(), None).code == "bad_state"
