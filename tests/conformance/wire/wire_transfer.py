"""What nodes say of the models that they hold, and the pieces that they ask each other for over the mesh."""

from typing import Any

import msgspec
from wire_case import Case, changed, longer
from wire_roster import NODE, NODE_KEY, newer_record, record

from felloe.domain.roster import Endpoint
from felloe.mesh import permissions
from felloe.mesh.fetching import FetchAnswer, FetchQuestion
from felloe.mesh.roster_wire import decode_record, encode_record


def _holder() -> bytes:
    transfer = Endpoint(hosts=("192.168.1.7", "attic.example"), port=8476)
    holder = msgspec.structs.replace(record(), transfer=transfer, holds=("00ff00ff00ff00ff", "1234567890abcdef"))
    return encode_record(holder, NODE_KEY.sign)


def _unsigned(content: Any) -> None:
    content[0] = content[0].replace(b"1234567890abcdef", b"1234567890abcde0")


def _subject() -> bytes:
    return msgspec.json.encode({"fetch": permissions.fetch(NODE)})


def _read_subject(data: bytes) -> Any:
    """Where this version asks and listens."""
    del data
    return msgspec.json.decode(_subject())


CASES = [
    Case("transfer-subject.json", _subject, _read_subject),
    Case("transfer-record", _holder, decode_record, grow=newer_record, refuse=changed(_unsigned)),
    Case(
        "transfer-question",
        lambda: msgspec.msgpack.encode(FetchQuestion("/blobs/" + "5a" * 32, 4194304, 262144)),
        lambda data: msgspec.msgpack.decode(data, type=FetchQuestion),
        grow=longer,
    ),
    Case(
        "transfer-answer",
        lambda: msgspec.msgpack.encode(FetchAnswer(8388608, b"a piece")),
        lambda data: msgspec.msgpack.decode(data, type=FetchAnswer),
        grow=longer,
    ),
]
