"""Oblivious HTTP (RFC 9458) and its chunked variant (draft-ietf-ohai-chunked-ohttp): messages, keys, chunks.

Every refusal is a `FelloeError` `unsealed`. Replays are not this file's concern; `sealing` refuses them.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from felloe.domain.errors import FelloeError
from felloe.privacy.hpke import (
    HKDF_SHA256,
    NONCE_LENGTH,
    TAG_LENGTH,
    Aead,
    Context,
    SequenceCipher,
    aead_by_identifier,
    hkdf_expand,
    hkdf_extract,
    setup_recipient,
    setup_sender,
)
from felloe.privacy.kems import Kem, KemPrivateKey, kem_by_identifier
from felloe.privacy.padding import CHUNK
from felloe.privacy.varint import decode_varint, encode_varint

HEADER_LENGTH = 7
FINAL = b"final"
_MAXIMUM_SUITES = 16


class Variant(NamedTuple):
    """Whole or chunked messages: the labels that keep the two apart."""

    request_label: bytes
    response_label: bytes


WHOLE = Variant(b"message/bhttp request", b"message/bhttp response")
CHUNKED = Variant(b"message/bhttp chunked request", b"message/bhttp chunked response")


class KeyConfiguration(NamedTuple):
    """A gateway's key (RFC 9458 section 3.1). `suites` holds (KDF, AEAD) identifiers, the preferred one first."""

    key_id: int
    kem: Kem
    public_key: bytes
    suites: tuple[tuple[int, int], ...]

    def encode(self) -> bytes:
        """The configuration as bytes, without the length that a list of them would put before it."""
        suites = b"".join(kdf.to_bytes(2, "big") + aead.to_bytes(2, "big") for kdf, aead in self.suites)
        kem = self.kem.identifier.to_bytes(2, "big")
        return bytes((self.key_id,)) + kem + self.public_key + len(suites).to_bytes(2, "big") + suites

    def choose_aead(self) -> Aead:
        """The first suite that is known here."""
        for kdf, aead in self.suites:
            if kdf == HKDF_SHA256 and aead in (1, 2, 3):
                return aead_by_identifier(aead)
        raise FelloeError("unsealed", "A key configuration names no cipher that is known here.")


def parse_key_configuration(data: bytes) -> KeyConfiguration:
    """Read exactly one key configuration."""
    if len(data) < 3:
        raise FelloeError("unsealed", "A key configuration is cut off.")
    kem = kem_by_identifier(int.from_bytes(data[1:3], "big"))
    key_end = 3 + kem.public_key_length
    if len(data) < key_end + 2:
        raise FelloeError("unsealed", "A key configuration is cut off.")
    suites = data[key_end + 2 :]
    declared = int.from_bytes(data[key_end : key_end + 2], "big")
    if declared != len(suites) or declared % 4 or not 1 <= declared // 4 <= _MAXIMUM_SUITES:
        raise FelloeError("unsealed", "The suites of a key configuration are malformed.")
    pairs = tuple(
        (int.from_bytes(suites[start : start + 2], "big"), int.from_bytes(suites[start + 2 : start + 4], "big"))
        for start in range(0, declared, 4)
    )
    return KeyConfiguration(data[0], kem, data[3:key_end], pairs)


class Header(NamedTuple):
    """The clear beginning of a request (RFC 9458 section 4.3): which key and which algorithms."""

    key_id: int
    kem: int
    kdf: int
    aead: int

    def encode(self) -> bytes:
        """The seven bytes."""
        return bytes((self.key_id,)) + b"".join(number.to_bytes(2, "big") for number in self[1:])


def parse_header(data: bytes) -> Header:
    """Read the header at the start of a request."""
    if len(data) < HEADER_LENGTH:
        raise FelloeError("unsealed", "A sealed request is cut off within its header.")
    return Header(data[0], *(int.from_bytes(data[start : start + 2], "big") for start in (1, 3, 5)))


class Exchange(NamedTuple):
    """What both ends know of one request and its answer. `context` seals (asker) or opens (answerer) the request."""

    context: Context
    encapsulated: bytes
    aead: Aead
    variant: Variant

    @property
    def nonce_length(self) -> int:
        """The length of the random nonce before an answer, in bytes."""
        return max(NONCE_LENGTH, self.aead.key_length)

    def response_cipher(self, nonce: bytes) -> SequenceCipher:
        """The cipher of the answer that begins with `nonce` (RFC 9458 section 4.4)."""
        secret = self.context.export(self.variant.response_label, self.nonce_length)
        key = hkdf_extract(self.encapsulated + nonce, secret)
        return SequenceCipher(
            self.aead, hkdf_expand(key, b"key", self.aead.key_length), hkdf_expand(key, b"nonce", NONCE_LENGTH)
        )


def _info(variant: Variant, header: bytes) -> bytes:
    return variant.request_label + b"\x00" + header


def begin_request(configuration: KeyConfiguration, aead: Aead, variant: Variant) -> tuple[bytes, Exchange]:
    """The asker's side: what the request begins with, and the exchange that seals the rest."""
    header = Header(configuration.key_id, configuration.kem.identifier, HKDF_SHA256, aead.identifier).encode()
    encapsulated, context = setup_sender(configuration.kem, aead, configuration.public_key, _info(variant, header))
    return header + encapsulated, Exchange(context, encapsulated, aead, variant)


def accept_request(sealed: bytes, kem: Kem, private_key: KemPrivateKey, variant: Variant) -> tuple[Exchange, int]:
    """The answerer's side: the exchange that opens the rest, and the offset where the rest begins.

    The caller has chosen `private_key` by the header's key id and has checked that it offers the header's suite.
    """
    header = parse_header(sealed)
    if header.kem != kem.identifier or header.kdf != HKDF_SHA256:
        raise FelloeError("unsealed", "A sealed request uses algorithms that its key is not for.")
    aead = aead_by_identifier(header.aead)
    end = HEADER_LENGTH + kem.encapsulated_length
    if len(sealed) < end:
        raise FelloeError("unsealed", "A sealed request is cut off within its key.")
    encapsulated = sealed[HEADER_LENGTH:end]
    context = setup_recipient(kem, aead, encapsulated, private_key, _info(variant, sealed[:HEADER_LENGTH]))
    return Exchange(context, encapsulated, aead, variant), end


def seal_response(exchange: Exchange, response: bytes, nonce: bytes | None = None) -> bytes:
    """A whole answer (RFC 9458 section 4.4); `nonce` is random unless a test names it."""
    nonce = os.urandom(exchange.nonce_length) if nonce is None else nonce
    return nonce + exchange.response_cipher(nonce).seal(response)


def open_response(exchange: Exchange, sealed: bytes) -> bytes:
    """Read a whole answer."""
    nonce = sealed[: exchange.nonce_length]
    if len(nonce) < exchange.nonce_length:
        raise FelloeError("unsealed", "A sealed answer is cut off within its nonce.")
    return exchange.response_cipher(nonce).open(sealed[exchange.nonce_length :])


def seal_chunk(cipher: SequenceCipher, plaintext: bytes, *, final: bool = False) -> bytes:
    """The next chunk of a chunked message with its length; a final chunk has length 0 and runs to the end."""
    if final:
        return b"\x00" + cipher.seal(plaintext, FINAL)
    if not plaintext:
        raise ValueError("only a final chunk may be empty")
    sealed = cipher.seal(plaintext)
    return encode_varint(len(sealed)) + sealed


def open_chunk(cipher: SequenceCipher, data: bytes, offset: int) -> tuple[bytes, int, bool]:
    """The plaintext of the chunk at `offset`, the offset after it, and whether it is the final one."""
    length, offset = decode_varint(data, offset)
    final = length == 0
    end = len(data) if final else offset + length
    if end > len(data):
        raise FelloeError("unsealed", "A sealed chunk is cut off.")
    if end - offset > CHUNK + TAG_LENGTH:
        raise FelloeError("unsealed", "A sealed chunk is too large.")
    plaintext = cipher.open(data[offset:end], FINAL if final else b"")
    if not plaintext and not final:
        raise FelloeError("unsealed", "A sealed chunk that is not the final one is empty.")
    return plaintext, end, final


def open_chunks(cipher: SequenceCipher, data: bytes, offset: int, maximum: int) -> Iterator[bytes]:
    """The plaintext of each of at most `maximum` chunks; `data` must end with the final one."""
    for _ in range(maximum):
        plaintext, offset, final = open_chunk(cipher, data, offset)
        yield plaintext
        if final:
            return
    raise FelloeError("unsealed", "A sealed message has too many chunks.")
