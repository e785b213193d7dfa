"""The bytes of request streams: one fixed header a message, and the few bodies that are not the caller's own.

Header, big-endian, 10 bytes: version (1), kind (1), sequence (8). What `sequence` counts depends on the kind; see
`Kind`. docs/protocol-mesh.md tells the same in prose.
"""

import re
import struct
from enum import IntEnum
from typing import NamedTuple

import msgspec

from felloe.domain.ids import NodeId
from felloe.mesh.permissions import inbox, inbox_owner

VERSION = 1
HEADER = struct.Struct(">BBQ")
OPENING = struct.Struct(">III")
FLOW = struct.Struct(">16sQ")

_STREAM = re.compile(r"[0-9a-f]{32}")


class Kind(IntEnum):
    """What a message is: two for `node.<id>.infer`, two for `node.<id>.flow`, the rest for the asker's inbox."""

    OPEN = 1
    """Sequence 0; an `Opening`, then the first part of the request."""
    MORE = 2
    """Sequence 1, 2, ...: the next part of the request."""
    CREDIT = 3
    """Sequence: how many messages may be sent in all; stream id, then how many bytes may be sent in all."""
    CANCEL = 4
    """Sequence 0; stream id, and 0 as bytes."""
    DATA = 5
    """Sequence 0, 1, ...: one message, or its last part."""
    PART = 6
    """Numbered like data: a part of a message that the next numbers go on with."""
    END = 7
    """Numbered like data: nothing follows."""
    KEEPALIVE = 8
    """Sequence: the number that comes next. The answerer lives and has nothing to say yet."""
    REFUSE = 9
    """Sequence 0; a `Refusal`. Nothing follows."""


class Opening(NamedTuple):
    """What the asker grants at once, in messages and bytes, and how long its request is, in bytes."""

    messages: int
    bytes: int
    total: int


class Refusal(msgspec.Struct, array_like=True, frozen=True):
    """Why the answerer will not go on; `retry_after` in seconds."""

    code: str
    retry_after: float | None = None


class BadMessage(Exception):
    """These bytes are not a message of this protocol."""


def reply_subject(asker: NodeId, stream: str) -> str:
    """Where answers of `stream` (32 hex digits) go."""
    return f"{inbox(asker)}.{stream}"


def parse_reply_subject(subject: str) -> tuple[NodeId, str]:
    """The asker and the stream; `BadMessage` for anything else, so that no one makes us publish elsewhere."""
    asker = inbox_owner(subject)
    stream = subject.rpartition(".")[2]
    if asker is None or _STREAM.fullmatch(stream) is None or subject != reply_subject(asker, stream):
        raise BadMessage("reply subject")
    return asker, stream


def parse_header(message: bytes) -> tuple[int, int]:
    """Kind and sequence of `message`; the body begins at `HEADER.size`."""
    if len(message) < HEADER.size:
        raise BadMessage("short header")
    version, kind, sequence = HEADER.unpack_from(message)
    if version != VERSION:
        raise BadMessage("version")
    return kind, sequence


def encode(kind: Kind, sequence: int, body: bytes = b"") -> bytes:
    """One message."""
    return HEADER.pack(VERSION, kind, sequence) + body


def encode_open(opening: Opening, part: bytes) -> bytes:
    """The first message of a request."""
    return HEADER.pack(VERSION, Kind.OPEN, 0) + OPENING.pack(*opening) + part


def parse_open(message: bytes) -> tuple[Opening, bytes]:
    """The opening and the first part of the request."""
    body = HEADER.size + OPENING.size
    if len(message) < body:
        raise BadMessage("short opening")
    return Opening(*OPENING.unpack_from(message, HEADER.size)), message[body:]


def encode_flow(kind: Kind, stream: str, messages: int, size: int) -> bytes:
    """A credit or a cancel."""
    return HEADER.pack(VERSION, kind, messages) + FLOW.pack(bytes.fromhex(stream), size)


def parse_flow(message: bytes) -> tuple[str, int]:
    """The stream, and how many bytes may be sent in all."""
    if len(message) != HEADER.size + FLOW.size:
        raise BadMessage("flow length")
    stream, size = FLOW.unpack_from(message, HEADER.size)
    return stream.hex(), size


def encode_refusal(refusal: Refusal) -> bytes:
    """The message that ends a stream with a reason."""
    return encode(Kind.REFUSE, 0, msgspec.msgpack.encode(refusal))


def parse_refusal(body: bytes) -> Refusal:
    """The reason; `BadMessage` when it is none."""
    try:
        return msgspec.msgpack.decode(body, type=Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadMessage("refusal") from error
