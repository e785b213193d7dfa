"""Key encapsulation for HPKE: X25519 (RFC 9180 section 4.1) and X-Wing (draft-connolly-cfrg-xwing-kem).

X-Wing joins X25519 and ML-KEM-768: it holds as long as either of the two does, so a recorded request stays sealed
even when quantum computers come. X25519 alone is here for the published vectors and for peers outside the network.
"""

import hashlib
import hmac
import os
from collections.abc import Callable
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from felloe.domain.errors import FelloeError

_X25519_LENGTH = 32
_MLKEM_PUBLIC_KEY_LENGTH = 1184
_MLKEM_CIPHERTEXT_LENGTH = 1088
_XWING_LABEL = b"\\.//^\\"


class KemPrivateKey(Protocol):
    """One private key. `public_key` is its serialised public half."""

    @property
    def public_key(self) -> bytes: ...

    def decapsulate(self, encapsulated: bytes) -> bytes:
        """The 32-byte shared secret; raises `FelloeError` `unsealed` for a malformed or degenerate `encapsulated`."""
        ...


class Kem(Protocol):
    """One key encapsulation mechanism. Lengths are in bytes; `identifier` is HPKE's registered number."""

    @property
    def identifier(self) -> int: ...

    @property
    def public_key_length(self) -> int: ...

    @property
    def encapsulated_length(self) -> int: ...

    def generate(self) -> KemPrivateKey:
        """A fresh private key from the system's randomness."""
        ...

    def load(self, secret: bytes) -> KemPrivateKey:
        """The private key of 32 secret bytes."""
        ...

    def encapsulate(self, public_key: bytes) -> tuple[bytes, bytes]:
        """A fresh 32-byte shared secret and what the key's holder needs to get it.

        Raises `FelloeError` `unsealed` for a malformed or degenerate `public_key`.
        """
        ...


def _x25519_secret(private_key: X25519PrivateKey, public_key: bytes) -> bytes:
    try:
        return private_key.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError as error:  # a wrong length, or a low-order point that makes the secret all zero
        raise FelloeError("unsealed", "An X25519 public key is malformed or degenerate.") from error


def _labeled_secret(diffie_hellman: bytes, context: bytes) -> bytes:
    """ExtractAndExpand of RFC 9180 section 4.1 for DHKEM(X25519, HKDF-SHA256), 32 bytes."""
    suite = b"KEM\x00\x20"
    extracted = hmac.digest(b"", b"HPKE-v1" + suite + b"eae_prk" + diffie_hellman, "sha256")
    return hmac.digest(extracted, b"\x00\x20HPKE-v1" + suite + b"shared_secret" + context + b"\x01", "sha256")


class X25519Key:
    """A private key of `X25519Kem`."""

    def __init__(self, private_key: X25519PrivateKey) -> None:
        self._private_key = private_key
        self.public_key = private_key.public_key().public_bytes_raw()

    def decapsulate(self, encapsulated: bytes) -> bytes:
        """See `KemPrivateKey`."""
        shared = _x25519_secret(self._private_key, encapsulated)
        return _labeled_secret(shared, encapsulated + self.public_key)


class X25519Kem:
    """DHKEM(X25519, HKDF-SHA256), RFC 9180 section 4.1. `ephemeral` makes the key pair of each encapsulation."""

    identifier = 0x0020
    public_key_length = _X25519_LENGTH
    encapsulated_length = _X25519_LENGTH

    def __init__(self, ephemeral: Callable[[], X25519PrivateKey] = X25519PrivateKey.generate) -> None:
        self._ephemeral = ephemeral

    def generate(self) -> X25519Key:
        """See `Kem`."""
        return X25519Key(X25519PrivateKey.generate())

    def load(self, secret: bytes) -> X25519Key:
        """See `Kem`."""
        return X25519Key(X25519PrivateKey.from_private_bytes(secret))

    def encapsulate(self, public_key: bytes) -> tuple[bytes, bytes]:
        """See `Kem`."""
        ephemeral = self._ephemeral()
        encapsulated = ephemeral.public_key().public_bytes_raw()
        return _labeled_secret(_x25519_secret(ephemeral, public_key), encapsulated + public_key), encapsulated


def _combine(mlkem_secret: bytes, x25519_secret: bytes, x25519_ciphertext: bytes, x25519_public_key: bytes) -> bytes:
    """The combiner of X-Wing."""
    return hashlib.sha3_256(
        mlkem_secret + x25519_secret + x25519_ciphertext + x25519_public_key + _XWING_LABEL
    ).digest()


class XWingKey:
    """A private key of `XWingKem`, expanded from its 32-byte seed."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != 32:
            raise ValueError("an X-Wing private key has 32 bytes")
        expanded = hashlib.shake_256(seed).digest(96)
        self._mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        self._x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
        self._x25519_public = self._x25519.public_key().public_bytes_raw()
        self.public_key = self._mlkem.public_key().public_bytes_raw() + self._x25519_public

    def decapsulate(self, encapsulated: bytes) -> bytes:
        """See `KemPrivateKey`. X-Wing itself lets low-order X25519 points pass; they are refused here."""
        if len(encapsulated) != XWingKem.encapsulated_length:
            raise FelloeError("unsealed", "An encapsulated X-Wing key has the wrong length.")
        ciphertext = encapsulated[_MLKEM_CIPHERTEXT_LENGTH:]
        x25519_secret = _x25519_secret(self._x25519, ciphertext)
        mlkem_secret = self._mlkem.decapsulate(encapsulated[:_MLKEM_CIPHERTEXT_LENGTH])
        return _combine(mlkem_secret, x25519_secret, ciphertext, self._x25519_public)


class XWingKem:
    """X-Wing: ML-KEM-768 with X25519, draft-connolly-cfrg-xwing-kem."""

    identifier = 0x647A
    public_key_length = _MLKEM_PUBLIC_KEY_LENGTH + _X25519_LENGTH
    encapsulated_length = _MLKEM_CIPHERTEXT_LENGTH + _X25519_LENGTH

    def generate(self) -> XWingKey:
        """See `Kem`."""
        return XWingKey(os.urandom(32))

    def load(self, secret: bytes) -> XWingKey:
        """See `Kem`."""
        return XWingKey(secret)

    def encapsulate(self, public_key: bytes) -> tuple[bytes, bytes]:
        """See `Kem`."""
        if len(public_key) != self.public_key_length:
            raise FelloeError("unsealed", "An X-Wing public key has the wrong length.")
        x25519_public = public_key[_MLKEM_PUBLIC_KEY_LENGTH:]
        ephemeral = X25519PrivateKey.generate()
        ciphertext = ephemeral.public_key().public_bytes_raw()
        x25519_secret = _x25519_secret(ephemeral, x25519_public)
        try:
            mlkem_public = MLKEM768PublicKey.from_public_bytes(public_key[:_MLKEM_PUBLIC_KEY_LENGTH])
        except ValueError as error:
            raise FelloeError("unsealed", "An ML-KEM public key is malformed.") from error
        mlkem_secret, mlkem_ciphertext = mlkem_public.encapsulate()
        return _combine(mlkem_secret, x25519_secret, ciphertext, x25519_public), mlkem_ciphertext + ciphertext


def kem_by_identifier(identifier: int) -> Kem:
    """The mechanism with HPKE's registered number; raises `FelloeError` `unsealed` for any other."""
    if identifier == XWingKem.identifier:
        return XWingKem()
    if identifier == X25519Kem.identifier:
        return X25519Kem()
    raise FelloeError("unsealed", f"The key encapsulation {identifier:#06x} is not known here.")
