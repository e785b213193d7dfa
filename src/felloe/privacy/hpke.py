"""HPKE in base mode (RFC 9180): a context that seals, opens and exports; KDF HKDF-SHA256.

`cryptography` offers HPKE only for single messages without export, which Oblivious HTTP needs; hence this context.
"""

import hmac
from collections.abc import Callable
from typing import NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from felloe.domain.errors import FelloeError
from felloe.privacy.kems import Kem, KemPrivateKey

HKDF_SHA256 = 0x0001
NONCE_LENGTH = 12
TAG_LENGTH = 16
_HASH_LENGTH = 32
_SEQUENCE_LIMIT = (1 << (8 * NONCE_LENGTH)) - 1


class _Primitive(Protocol):
    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


class Aead(NamedTuple):
    """An AEAD that HPKE names (RFC 9180 section 7.3); the nonce has 12 bytes and the tag 16."""

    identifier: int
    key_length: int
    make: Callable[[bytes], _Primitive]


AES_128_GCM = Aead(0x0001, 16, AESGCM)
AES_256_GCM = Aead(0x0002, 32, AESGCM)
CHACHA20_POLY1305 = Aead(0x0003, 32, ChaCha20Poly1305)


def aead_by_identifier(identifier: int) -> Aead:
    """The AEAD with HPKE's registered number; raises `FelloeError` `unsealed` for any other."""
    for aead in (AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305):
        if aead.identifier == identifier:
            return aead
    raise FelloeError("unsealed", f"The AEAD {identifier:#06x} is not known here.")


def hkdf_extract(salt: bytes, secret: bytes) -> bytes:
    """HKDF-SHA256 Extract (RFC 5869 section 2.2), 32 bytes."""
    return hmac.digest(salt, secret, "sha256")


def hkdf_expand(key: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 Expand (RFC 5869 section 2.3), `length` at most 8160 bytes."""
    if length > 255 * _HASH_LENGTH:
        raise ValueError("HKDF-SHA256 gives at most 8160 bytes")
    output = block = b""
    counter = 0
    while len(output) < length:
        counter += 1
        block = hmac.digest(key, block + info + bytes((counter,)), "sha256")
        output += block
    return output[:length]


class SequenceCipher:
    """An AEAD key for a sequence of messages: each nonce is the base nonce XOR the message's number.

    The nonces of HPKE (RFC 9180 section 5.2) and of chunked OHTTP's answers. One instance either seals or opens.
    """

    __slots__ = ("_base_nonce", "_primitive", "_sequence")

    def __init__(self, aead: Aead, key: bytes, base_nonce: bytes) -> None:
        self._primitive = aead.make(key)
        self._base_nonce = int.from_bytes(base_nonce, "big")
        self._sequence = 0

    def _next_nonce(self) -> bytes:
        sequence = self._sequence
        if sequence >= _SEQUENCE_LIMIT:
            raise FelloeError("unsealed", "The message limit of a sealing key is reached.")
        return (self._base_nonce ^ sequence).to_bytes(NONCE_LENGTH, "big")

    def seal(self, plaintext: bytes, associated: bytes = b"") -> bytes:
        """Encrypt the next message; 16 bytes longer than `plaintext`."""
        sealed = self._primitive.encrypt(self._next_nonce(), plaintext, associated)
        self._sequence += 1
        return sealed

    def open(self, sealed: bytes, associated: bytes = b"") -> bytes:
        """Decrypt the next message; raises `FelloeError` `unsealed` and stays at the same message when it is not."""
        try:
            plaintext = self._primitive.decrypt(self._next_nonce(), sealed, associated)
        except InvalidTag:
            raise FelloeError("unsealed", "A sealed message was changed, reordered or cut off.") from None
        self._sequence += 1
        return plaintext


class Context(SequenceCipher):
    """One end of an HPKE exchange (RFC 9180 section 5): the messages in one direction, and exported secrets."""

    __slots__ = ("_exporter_secret", "_suite")

    def __init__(self, kem: Kem, aead: Aead, shared_secret: bytes, info: bytes) -> None:
        self._suite = b"HPKE" + b"".join(
            number.to_bytes(2, "big") for number in (kem.identifier, HKDF_SHA256, aead.identifier)
        )
        schedule = b"\x00" + self._extract(b"", b"psk_id_hash", b"") + self._extract(b"", b"info_hash", info)
        secret = self._extract(shared_secret, b"secret", b"")
        key = self._expand(secret, b"key", schedule, aead.key_length)
        super().__init__(aead, key, self._expand(secret, b"base_nonce", schedule, NONCE_LENGTH))
        self._exporter_secret = self._expand(secret, b"exp", schedule, _HASH_LENGTH)

    def _extract(self, salt: bytes, label: bytes, secret: bytes) -> bytes:
        return hkdf_extract(salt, b"HPKE-v1" + self._suite + label + secret)

    def _expand(self, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
        return hkdf_expand(key, length.to_bytes(2, "big") + b"HPKE-v1" + self._suite + label + info, length)

    def export(self, exporter_context: bytes, length: int) -> bytes:
        """A secret of `length` bytes that only both ends know (RFC 9180 section 5.3)."""
        return self._expand(self._exporter_secret, b"sec", exporter_context, length)


def setup_sender(kem: Kem, aead: Aead, public_key: bytes, info: bytes) -> tuple[bytes, Context]:
    """SetupBaseS: the encapsulated key to send along, and the context that seals."""
    shared_secret, encapsulated = kem.encapsulate(public_key)
    return encapsulated, Context(kem, aead, shared_secret, info)


def setup_recipient(kem: Kem, aead: Aead, encapsulated: bytes, private_key: KemPrivateKey, info: bytes) -> Context:
    """SetupBaseR: the context that opens; raises `FelloeError` `unsealed` for a malformed `encapsulated`."""
    return Context(kem, aead, private_key.decapsulate(encapsulated), info)
