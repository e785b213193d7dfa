"""What the product uses: seal a request to a node, open it there, and seal the answer part by part.

Chunked Oblivious HTTP over Binary HTTP, sizes padded to buckets; docs/protocol-sealing.md has the bytes. A message is
readable by the two ends only, cannot be replayed, reordered, cut or joined, and is lost for good with the node's
keys. Nothing here is safe to use from several threads at once.
"""

import hashlib
import os
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

from felloe.domain.errors import FelloeError
from felloe.privacy.binary_http import Request, encode_request, encode_response_head, parse_request, parse_response_head
from felloe.privacy.hpke import AES_128_GCM, CHACHA20_POLY1305, HKDF_SHA256, TAG_LENGTH, SequenceCipher
from felloe.privacy.kems import KemPrivateKey, XWingKem
from felloe.privacy.ohttp import (
    CHUNKED,
    HEADER_LENGTH,
    Exchange,
    KeyConfiguration,
    accept_request,
    begin_request,
    open_chunk,
    open_chunks,
    parse_header,
    parse_key_configuration,
    seal_chunk,
)
from felloe.privacy.padding import CHUNK, LARGEST_REQUEST, answer_bucket, request_bucket

MAXIMUM_REQUEST = 8 << 20
"""The largest request body, in bytes."""
MAXIMUM_PART = 1 << 20
"""The largest part of an answer, in bytes."""
KEY_LIFETIME = 3600.0
"""Seconds after which a sealing key is replaced."""
KEY_REQUESTS = 100_000
"""Requests after which a sealing key is replaced; a key is spent for good at twice as many."""
KEY_GRACE = 120.0
"""Seconds for which a replaced key still opens requests that were sealed before the asker heard of the new one."""

_RETIRED_KEYS = 3
_CHUNK_OVERHEAD = 4 + TAG_LENGTH
_SUITES = ((HKDF_SHA256, AES_128_GCM.identifier), (HKDF_SHA256, CHACHA20_POLY1305.identifier))
_REQUEST_OVERHEAD = HEADER_LENGTH + XWingKem.encapsulated_length
MAXIMUM_SEALED_REQUEST = _REQUEST_OVERHEAD + LARGEST_REQUEST + (LARGEST_REQUEST // CHUNK) * _CHUNK_OVERHEAD
"""The largest sealed request, in bytes."""

_ANSWER_HEAD = encode_response_head(200)
_ANSWER_TAIL = b"\x00\x00"
_FRAME = struct.Struct(">HH")
_FRAME_ROOM = CHUNK - _FRAME.size
_TWO_BYTE_LENGTH = 0x4000
_MORE = 0x8000
_MAXIMUM_ANSWER_CHUNKS = -(-MAXIMUM_PART // (_FRAME_ROOM - len(_ANSWER_HEAD) - len(_ANSWER_TAIL)))
MAXIMUM_SEALED_PART = 32 + _MAXIMUM_ANSWER_CHUNKS * (CHUNK + _CHUNK_OVERHEAD)
"""The largest message of a sealed answer, in bytes."""


class AnswerSealer:
    """Seals the parts of one answer, in order: any number of `seal`, then one `finish`."""

    __slots__ = ("_cipher", "_finished", "_nonce")

    def __init__(self, exchange: Exchange) -> None:
        self._nonce = os.urandom(exchange.nonce_length)
        self._cipher = exchange.response_cipher(self._nonce)
        self._finished = False

    def seal(self, part: bytes) -> bytes:
        """The next message, for one part of at most `MAXIMUM_PART` bytes."""
        length = len(part)
        if self._nonce or self._finished or length > _FRAME_ROOM - len(_ANSWER_TAIL):
            return self._message(part, final=False)
        return seal_chunk(self._cipher, _frame(part, answer_bucket(_FRAME.size + length), more=False))

    def finish(self, part: bytes = b"") -> bytes:
        """The last message, with the last part; without it the asker knows that the answer was cut off."""
        message = self._message(part, final=True)
        self._finished = True
        return message

    def _message(self, part: bytes, *, final: bool) -> bytes:
        if self._finished:
            raise FelloeError("internal", "A sealed answer is already finished.")
        if len(part) > MAXIMUM_PART:
            raise FelloeError("internal", "A part of an answer is too large to seal.")
        message = [self._nonce]
        head = _ANSWER_HEAD if self._nonce else b""
        room = _FRAME_ROOM - len(head) - len(_ANSWER_TAIL)
        start = 0
        while len(part) - start > room:
            frame = _frame(part[start : start + room], CHUNK - len(head), more=True)
            message.append(seal_chunk(self._cipher, head + frame))
            start += room
            head = b""
            room = _FRAME_ROOM - len(_ANSWER_TAIL)
        rest = part[start:]
        tail = _ANSWER_TAIL if final else b""
        around = len(head) + len(tail)
        size = CHUNK if start else answer_bucket(_FRAME.size + len(rest) + around)
        plaintext = head + _frame(rest, size - around, more=False) + tail
        message.append(seal_chunk(self._cipher, plaintext, final=final))
        self._nonce = b""
        return b"".join(message)


def _frame(part: bytes, size: int, *, more: bool) -> bytes:
    """One content chunk of `size` bytes: its length, how much of it is the part, the part, zeros."""
    used = len(part) | (_MORE if more else 0)
    return _FRAME.pack(_TWO_BYTE_LENGTH | size - 2, used) + part.ljust(size - _FRAME.size, b"\x00")


class AnswerOpener:
    """Opens the messages of one answer in the order in which they were sealed.

    `finished` turns true with the last message. After a refusal the answer is lost: every further `open` is refused.
    """

    __slots__ = ("_cipher", "_exchange", "_refused", "finished")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._cipher: SequenceCipher | None = None
        self._refused = False
        self.finished = False

    def open(self, message: bytes) -> bytes:
        """The part in `message`; raises `FelloeError` `unsealed` if it is not the next one, whole and unchanged."""
        if self._refused or self.finished:
            raise FelloeError("unsealed", "A sealed answer goes on after its end or after a refusal.")
        if len(message) > MAXIMUM_SEALED_PART:
            raise FelloeError("unsealed", "A message of a sealed answer is too large.")
        self._refused = True
        first = self._cipher is None
        offset = self._exchange.nonce_length if first else 0
        cipher = self._cipher = self._cipher or self._exchange.response_cipher(message[:offset])
        pieces: list[bytes] = []
        more, final = True, False
        while more:
            if len(pieces) >= _MAXIMUM_ANSWER_CHUNKS:
                raise FelloeError("unsealed", "A part of a sealed answer does not end with its message.")
            plaintext, offset, final = open_chunk(cipher, message, offset)
            piece, more = _unframe(plaintext, first=first, final=final)
            pieces.append(piece)
            first = False
        if offset != len(message):
            raise FelloeError("unsealed", "A message of a sealed answer holds more than one part.")
        self._refused = False
        self.finished = final
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _unframe(plaintext: bytes, *, first: bool, final: bool) -> tuple[bytes, bool]:
    """The part of one chunk, and whether it goes on in the next chunk."""
    start = 0
    if first:
        head = parse_response_head(plaintext)
        if head.status != 200 or head.known_length:
            raise FelloeError("unsealed", "A sealed answer has an unexpected head.")
        start = head.content_offset
    end = len(plaintext) - (len(_ANSWER_TAIL) if final else 0)
    if end < start + _FRAME.size:
        raise FelloeError("unsealed", "A frame of a sealed answer is cut off.")
    length, used = _FRAME.unpack_from(plaintext, start)
    more = used >= _MORE
    part_end = start + _FRAME.size + (used & ~_MORE)
    if length != _TWO_BYTE_LENGTH | (end - start - 2) or part_end > end:
        raise FelloeError("unsealed", "A frame of a sealed answer is malformed.")
    if len(plaintext) - part_end != plaintext.count(0, part_end):
        raise FelloeError("unsealed", "The padding of a sealed answer is not zero.")
    return plaintext[start + _FRAME.size : part_end], more


def seal(config: bytes, request: bytes, *, allow_classical: bool = False) -> tuple[bytes, AnswerOpener]:
    """Seal the body of one request of at most `MAXIMUM_REQUEST` bytes to the node that published `config`.

    Raises `FelloeError` `unsealed` for a malformed `config`, or one whose key encapsulation is not X-Wing unless
    `allow_classical`; `body_too_large` for the request.
    """
    if len(request) > MAXIMUM_REQUEST:
        raise FelloeError("body_too_large", "The request is too large to seal.")
    configuration = parse_key_configuration(config)
    if configuration.kem.identifier != XWingKem.identifier and not allow_classical:
        raise FelloeError("unsealed", "The node's sealing key is not an X-Wing key.")
    start, exchange = begin_request(configuration, configuration.choose_aead(), CHUNKED)
    plaintext = encode_request(Request(b"POST", b"https", b"felloe", b"/v1/infer", content=request))
    plaintext = plaintext.ljust(request_bucket(len(plaintext)), b"\x00")
    chunks = [start]
    for offset in range(0, len(plaintext), CHUNK):
        end = offset + CHUNK
        chunks.append(seal_chunk(exchange.context, plaintext[offset:end], final=end >= len(plaintext)))
    return b"".join(chunks), AnswerOpener(exchange)


class _Key:
    """One sealing key and which requests it has opened. Both go together, so memory stays bounded."""

    __slots__ = ("configuration", "opened", "private_key", "since")

    def __init__(self, key_id: int, since: float) -> None:
        kem = XWingKem()
        self.private_key: KemPrivateKey = kem.generate()
        self.configuration = KeyConfiguration(key_id, kem, self.private_key.public_key, _SUITES)
        self.opened: set[bytes] = set()
        self.since = since


class _RetiredKey(NamedTuple):
    key: _Key
    until: float


class SealingKeys:
    """The sealing keys of this node: in memory only and new at every start.

    What was sealed to a key can never be opened again once the key is gone, and a request opens once only. `clock`
    gives seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._current = _Key(os.urandom(1)[0], clock())
        self._retired: list[_RetiredKey] = []

    @property
    def config(self) -> bytes:
        """The OHTTP key configuration to publish."""
        return self._current.configuration.encode()

    def rotate_if_due(self) -> bool:
        """Replace the current key if it is old or much used; true tells the caller to publish the new `config`."""
        now = self._clock()
        self._forget(now)
        if now - self._current.since < KEY_LIFETIME and len(self._current.opened) < KEY_REQUESTS:
            return False
        self._retired.append(_RetiredKey(self._current, now + KEY_GRACE))
        del self._retired[:-_RETIRED_KEYS]
        self._current = _Key((self._current.configuration.key_id + 1) % 256, now)
        return True

    def open(self, sealed: bytes) -> tuple[bytes, AnswerSealer]:
        """The body of a sealed request, and what seals its answer.

        Raises `FelloeError` `unsealed` when it is not whole, unchanged and sealed to a live key of this node, and
        `replayed` when it was opened before.
        """
        if len(sealed) > MAXIMUM_SEALED_REQUEST:
            raise FelloeError("unsealed", "A sealed request is too large.")
        header = parse_header(sealed)
        key = self._find(header.key_id)
        if (header.kdf, header.aead) not in _SUITES or header.kem != XWingKem.identifier:
            raise FelloeError("unsealed", "A sealed request uses algorithms that this node does not offer.")
        fingerprint = hashlib.blake2b(sealed[HEADER_LENGTH:_REQUEST_OVERHEAD], digest_size=16).digest()
        if fingerprint in key.opened:
            raise FelloeError("replayed", "A sealed request was sent twice.")
        if len(key.opened) >= 2 * KEY_REQUESTS:
            raise FelloeError("unsealed", "The sealing key is spent.")
        exchange, offset = accept_request(sealed, key.configuration.kem, key.private_key, CHUNKED)
        plaintext = b"".join(open_chunks(exchange.context, sealed, offset, LARGEST_REQUEST // CHUNK))
        key.opened.add(fingerprint)
        request = parse_request(plaintext)
        if request[:4] != (b"POST", b"https", b"felloe", b"/v1/infer"):
            raise FelloeError("unsealed", "A sealed request is not for this node's inference.")
        return request.content, AnswerSealer(exchange)

    def _find(self, key_id: int) -> _Key:
        self._forget(self._clock())
        for key in (self._current, *(retired.key for retired in self._retired)):
            if key.configuration.key_id == key_id:
                return key
        raise FelloeError("unsealed", "A sealed request names a key that this node does not have.")

    def _forget(self, now: float) -> None:
        if self._retired and self._retired[0].until <= now:
            self._retired = [retired for retired in self._retired if retired.until > now]
