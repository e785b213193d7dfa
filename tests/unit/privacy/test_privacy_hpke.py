"""HPKE refuses what is degenerate, malformed or out of order."""

import pytest

from felloe.domain.errors import FelloeError
from felloe.privacy.hpke import (
    AES_128_GCM,
    AES_256_GCM,
    CHACHA20_POLY1305,
    Aead,
    SequenceCipher,
    aead_by_identifier,
    hkdf_expand,
    setup_recipient,
    setup_sender,
)
from felloe.privacy.kems import Kem, X25519Kem, XWingKem, kem_by_identifier

KEMS: list[Kem] = [X25519Kem(), XWingKem()]
LOW_ORDER_POINTS = [
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ec" + "ff" * 30 + "7f"),
    bytes.fromhex("ed" + "ff" * 30 + "7f"),
    bytes.fromhex("ee" + "ff" * 30 + "7f"),
]


@pytest.mark.parametrize("kem", KEMS, ids=lambda kem: type(kem).__name__)
@pytest.mark.parametrize("aead", [AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305], ids=lambda aead: f"aead{aead[0]}")
def test_what_one_end_seals_the_other_opens(kem: Kem, aead: Aead) -> None:
    private_key = kem.generate()
    encapsulated, sender = setup_sender(kem, aead, private_key.public_key, b"info")
    recipient = setup_recipient(kem, aead, encapsulated, private_key, b"info")
    for number in range(3):
        assert recipient.open(sender.seal(b"text %d" % number, b"tied"), b"tied") == b"text %d" % number
    assert sender.export(b"for", 40) == recipient.export(b"for", 40)
    assert sender.export(b"for", 40) != sender.export(b"other", 40)


@pytest.mark.parametrize("point", LOW_ORDER_POINTS, ids=lambda point: point.hex()[:8])
def test_x25519_points_that_would_fix_the_secret_are_refused(point: bytes) -> None:
    with pytest.raises(FelloeError, match="degenerate"):
        X25519Kem().generate().decapsulate(point)
    with pytest.raises(FelloeError, match="degenerate"):
        X25519Kem().encapsulate(point)


@pytest.mark.parametrize("point", LOW_ORDER_POINTS, ids=lambda point: point.hex()[:8])
def test_x_wing_refuses_the_same_points(point: bytes) -> None:
    kem = XWingKem()
    private_key = kem.generate()
    _, encapsulated = kem.encapsulate(private_key.public_key)
    with pytest.raises(FelloeError, match="degenerate"):
        private_key.decapsulate(encapsulated[:-32] + point)
    with pytest.raises(FelloeError, match="degenerate"):
        kem.encapsulate(private_key.public_key[:-32] + point)


@pytest.mark.parametrize("kem", KEMS, ids=lambda kem: type(kem).__name__)
@pytest.mark.parametrize("change", [-1, 1, -10_000])
def test_keys_of_a_wrong_length_are_refused(kem: Kem, change: int) -> None:
    private_key = kem.generate()
    _, encapsulated = kem.encapsulate(private_key.public_key)

    def resized(data: bytes) -> bytes:
        return (data + b"\0")[: max(0, len(data) + change)]

    message = "wrong length" if isinstance(kem, XWingKem) else "malformed"
    with pytest.raises(FelloeError, match=message):
        kem.encapsulate(resized(private_key.public_key))
    with pytest.raises(FelloeError, match=message):
        private_key.decapsulate(resized(encapsulated))


def test_an_ml_kem_key_that_is_not_reduced_is_refused() -> None:
    public_key = XWingKem().generate().public_key
    with pytest.raises(FelloeError, match="ML-KEM"):
        XWingKem().encapsulate(b"\xff" * 1152 + public_key[1152:])


def test_a_changed_ml_kem_ciphertext_gives_another_secret() -> None:
    private_key = XWingKem().generate()
    secret, encapsulated = XWingKem().encapsulate(private_key.public_key)
    assert private_key.decapsulate(encapsulated) == secret
    assert private_key.decapsulate(bytes([encapsulated[0] ^ 1]) + encapsulated[1:]) != secret


def test_a_seed_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        XWingKem().load(bytes(31))


@pytest.mark.parametrize("identifier", [0, 0x10, 0x21, 0x647B, 0xFFFF])
def test_unknown_algorithms_are_refused(identifier: int) -> None:
    with pytest.raises(FelloeError, match="not known"):
        kem_by_identifier(identifier)
    with pytest.raises(FelloeError, match="not known"):
        aead_by_identifier(identifier)


@pytest.mark.parametrize("aead", [AES_128_GCM, CHACHA20_POLY1305], ids=lambda aead: f"aead{aead[0]}")
def test_messages_open_in_order_and_unchanged_only(aead: Aead) -> None:
    key, nonce = bytes(aead.key_length), bytes(12)
    sender, recipient = SequenceCipher(aead, key, nonce), SequenceCipher(aead, key, nonce)
    first, second = sender.seal(b"first"), sender.seal(b"second", b"tied")
    assert first != sender.seal(b"first")
    for wrong in (second, first[:-1], first[:15], b"", bytes([first[0] ^ 1]) + first[1:]):
        with pytest.raises(FelloeError, match="unsealed"):
            recipient.open(wrong)
    assert recipient.open(first) == b"first"
    with pytest.raises(FelloeError, match="unsealed"):
        recipient.open(first)
    with pytest.raises(FelloeError, match="unsealed"):
        recipient.open(second)
    assert recipient.open(second, b"tied") == b"second"


def test_a_nonce_is_never_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("felloe.privacy.hpke._SEQUENCE_LIMIT", 2)
    sender = SequenceCipher(AES_128_GCM, bytes(16), bytes(12))
    sender.seal(b"")
    sender.seal(b"")
    with pytest.raises(FelloeError, match="message limit"):
        sender.seal(b"")


def test_hkdf_refuses_more_than_it_can_give() -> None:
    assert len(hkdf_expand(bytes(32), b"", 8160)) == 8160
    with pytest.raises(ValueError, match="8160"):
        hkdf_expand(bytes(32), b"", 8161)
