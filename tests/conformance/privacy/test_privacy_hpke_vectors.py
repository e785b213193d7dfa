"""HPKE and X-Wing give the published bytes (RFC 9180 appendix A, draft-ietf-hpke-pq, draft-connolly-cfrg-xwing-kem)."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hpke as other
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from felloe.privacy.hpke import AES_128_GCM, aead_by_identifier, setup_recipient, setup_sender
from felloe.privacy.kems import X25519Kem, XWingKem, kem_by_identifier

VECTORS = Path(__file__).parent / "vectors"
unhex = bytes.fromhex


def vectors(name: str) -> dict[str, Any]:
    return json.loads((VECTORS / name).read_text(encoding="utf-8"))


X25519_SUITES = vectors("hpke_x25519.json")["suites"]
XWING_SUITES = vectors("hpke_xwing.json")["suites"]


def suite_name(suite: dict[str, Any]) -> str:
    return f"kem{suite['kem_id']:#06x}-aead{suite['aead_id']}"


@pytest.mark.parametrize("suite", X25519_SUITES, ids=suite_name)
def test_sender_and_recipient_give_the_bytes_of_rfc_9180(suite: dict[str, Any]) -> None:
    kem = X25519Kem(ephemeral=lambda: X25519PrivateKey.from_private_bytes(unhex(suite["skEm"])))
    aead = aead_by_identifier(suite["aead_id"])
    encapsulated, context = setup_sender(kem, aead, unhex(suite["pkRm"]), unhex(suite["info"]))
    assert encapsulated == unhex(suite["enc"])
    private_key = kem.load(unhex(suite["skRm"]))
    recipient = setup_recipient(kem, aead, encapsulated, private_key, unhex(suite["info"]))
    messages = {message["sequence"]: message for message in suite["encryptions"]}
    assert set(messages) == {0, 1, 2, 4, 10, 32, 255, 256}
    for sequence in range(257):
        message = messages.get(sequence, {"pt": "", "aad": "", "ct": None})
        sealed = context.seal(unhex(message["pt"]), unhex(message["aad"]))
        if message["ct"] is not None:
            assert sealed == unhex(message["ct"])
        assert recipient.open(sealed, unhex(message["aad"])) == unhex(message["pt"])


@pytest.mark.parametrize("suite", XWING_SUITES, ids=suite_name)
def test_the_x_wing_recipient_opens_the_published_messages(suite: dict[str, Any]) -> None:
    kem = kem_by_identifier(suite["kem_id"])
    private_key = kem.load(unhex(suite["skRm"]))
    assert private_key.public_key == unhex(suite["pkRm"])
    assert private_key.decapsulate(unhex(suite["enc"])) == unhex(suite["shared_secret"])
    aead = aead_by_identifier(suite["aead_id"])
    context = setup_recipient(kem, aead, unhex(suite["enc"]), private_key, unhex(suite["info"]))
    for message in suite["encryptions"]:
        assert context.open(unhex(message["ct"]), unhex(message["aad"])) == unhex(message["pt"])


@pytest.mark.parametrize("suite", X25519_SUITES + XWING_SUITES, ids=suite_name)
def test_exported_secrets_are_the_published_ones(suite: dict[str, Any]) -> None:
    kem = kem_by_identifier(suite["kem_id"])
    aead = aead_by_identifier(suite["aead_id"])
    private_key = kem.load(unhex(suite["skRm"]))
    context = setup_recipient(kem, aead, unhex(suite["enc"]), private_key, unhex(suite["info"]))
    assert suite["exports"]
    for export in suite["exports"]:
        exported = context.export(unhex(export["exporter_context"]), export["L"])
        assert exported == unhex(export["exported_value"])


def test_x_wing_decapsulates_the_vector_of_its_draft() -> None:
    vector = vectors("xwing.json")
    private_key = XWingKem().load(unhex(vector["sk"]))
    assert private_key.public_key == unhex(vector["pk"])
    assert private_key.decapsulate(unhex(vector["ct"])) == unhex(vector["ss"])


def test_x_wing_understands_and_is_understood_by_another_implementation() -> None:
    suite = other.Suite(other.KEM.MLKEM768_X25519, other.KDF.HKDF_SHA256, other.AEAD.AES_128_GCM)
    mlkem, x25519 = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
    theirs = other.MLKEM768X25519PrivateKey(mlkem, x25519)
    public_key = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    encapsulated, context = setup_sender(XWingKem(), AES_128_GCM, public_key, b"info")
    assert suite.decrypt(encapsulated + context.seal(b"from here"), theirs, info=b"info") == b"from here"
