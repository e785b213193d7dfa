"""The messages of a request stream between two nodes, and what is inside the seal."""

from collections.abc import Callable
from typing import Any

import msgspec
from wire_case import Case, changed
from wire_roster import NODE

from felloe.domain.ids import ModelName, RequestId
from felloe.domain.requests import Done, Failure, InferenceRequest, Piece, ReplayResume, TokenResume, Usage
from felloe.mesh.stream_wire import (
    HEADER,
    Kind,
    Opening,
    Refusal,
    encode,
    encode_flow,
    encode_open,
    encode_refusal,
    parse_flow,
    parse_header,
    parse_open,
    parse_refusal,
    parse_reply_subject,
    reply_subject,
)
from felloe.privacy.binary_http import parse_request
from felloe.privacy.kems import XWingKem
from felloe.privacy.ohttp import CHUNKED, KeyConfiguration, accept_request, open_chunks, parse_key_configuration
from felloe.privacy.sealing import AnswerOpener, AnswerSealer, seal
from felloe.routing.wire import PartReader, decode_request, encode_parts, encode_request

STREAM = "0123456789abcdef" * 2
SEALING_SECRET = bytes(range(100, 132))
SEALING_KEY = XWingKem().load(SEALING_SECRET)
SEALING_CONFIG = KeyConfiguration(7, XWingKem(), SEALING_KEY.public_key, ((1, 1), (1, 3)))


def _request(**changes: Any) -> InferenceRequest:
    fields: dict[str, Any] = {
        "id": RequestId("chatcmpl-" + "0f" * 16),
        "kind": "chat",
        "model": ModelName("tiny-python"),
        "body": {
            "messages": [{"role": "user", "content": "Grüße, 世界"}],
            "temperature": 0.5,
            "max_tokens": 16,
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "seed": None,
        },
        "created": 1_790_000_000,
        "deadline": 12.5,
        "index": 3,
        "reach": "market",
    }
    return InferenceRequest(**(fields | changes))


PARTS = [
    Piece(41, (7, 8), b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'),
    Piece(43, (), b'data: {"choices":[{"delta":{"content":"b"}}]}\n\n'),
    Done(Usage(12, 43, 5), "stop"),
]
FAILURE = [Failure("overloaded", "64 requests wait", "model", 2.5)]


def _read_body(data: bytes) -> Any:
    kind, sequence = parse_header(data)
    return {"kind": Kind(kind), "sequence": sequence, "body": data[HEADER.size :]}


def _read_open(data: bytes) -> Any:
    opening, first = parse_open(data)
    return _read_body(data) | {"opening": opening, "first": first}


def _read_flow(data: bytes) -> Any:
    stream, size = parse_flow(data)
    return _read_body(data) | {"stream": stream, "bytes": size}


def _read_refusal(data: bytes) -> Any:
    kind, _ = parse_header(data)
    return {"kind": Kind(kind), "refusal": parse_refusal(data[HEADER.size :])}


def _newer_version(data: bytes) -> bytes:
    return bytes((2,)) + data[1:]


def _read_parts(data: bytes) -> Any:
    reader = PartReader()
    parts: list[Any] = []
    for message in msgspec.msgpack.decode(data, type=list[bytes]):
        parts += reader.feed(message)
    return parts


def _write_parts(parts: list[Any]) -> Callable[[], bytes]:
    return lambda: msgspec.msgpack.encode(encode_parts(parts))


def _grown_parts(data: bytes) -> bytes:
    message = msgspec.msgpack.decode(data, type=list[bytes])[0]
    parts = msgspec.msgpack.decode(message[1:])
    for part in parts:
        part.append("new")
        if part[0] == "d":
            part[1].append("new")
    return msgspec.msgpack.encode([message[:1] + msgspec.msgpack.encode(parts)])


def _unknown_part(data: bytes) -> bytes:
    message = msgspec.msgpack.decode(data, type=list[bytes])[0]
    return msgspec.msgpack.encode([message[:1] + msgspec.msgpack.encode([["x", 1]])])


def _grow_request(content: Any) -> None:
    content["of_a_newer_version"] = 1
    if content.get("resume"):
        content["resume"].append("new")


def _unknown_kind(content: Any) -> None:
    content["kind"] = "of_a_newer_version"


def _write_sealed() -> bytes:
    """A sealed request and the two messages of its answer."""
    sealed, _ = seal(SEALING_CONFIG.encode(), encode_request(_request()))
    exchange, _ = accept_request(sealed, XWingKem(), SEALING_KEY, CHUNKED)
    sealer = AnswerSealer(exchange)
    return msgspec.msgpack.encode([sealed, sealer.seal(b"first part"), sealer.finish(b"last part")])


def _read_sealed(data: bytes) -> Any:
    sealed, *answer = msgspec.msgpack.decode(data, type=list[bytes])
    exchange, offset = accept_request(sealed, XWingKem(), SEALING_KEY, CHUNKED)
    opened = parse_request(b"".join(open_chunks(exchange.context, sealed, offset, 4)))
    opener = AnswerOpener(accept_request(sealed, XWingKem(), SEALING_KEY, CHUNKED)[0])
    return {
        "target": list(opened[:4]),
        "request": decode_request(opened.content),
        "answer": [opener.open(message) for message in answer],
        "finished": opener.finished,
    }


def _read_sealing_config(data: bytes) -> Any:
    configuration = parse_key_configuration(data)
    suites = [list(pair) for pair in configuration.suites]
    return {"key": configuration.key_id, "kem": configuration.kem.identifier, "suites": suites}


def _stream_case(name: str, message: bytes, read: Callable[[bytes], Any] = _read_body) -> Case:
    return Case(f"stream-{name}", lambda: message, read, refuse=_newer_version)


CASES = [
    Case(
        "stream-reply-subject.txt",
        lambda: reply_subject(NODE, STREAM).encode(),
        lambda data: parse_reply_subject(data.decode()),
    ),
    _stream_case("open", encode_open(Opening(256, 1 << 20, 11), b"hello "), _read_open),
    _stream_case("more", encode(Kind.MORE, 1, b"world")),
    _stream_case("credit", encode_flow(Kind.CREDIT, STREAM, 512, 2 << 20), _read_flow),
    _stream_case("cancel", encode_flow(Kind.CANCEL, STREAM, 0, 0), _read_flow),
    _stream_case("data", encode(Kind.DATA, 1 << 33, b"a message")),
    _stream_case("part", encode(Kind.PART, 5, b"a part")),
    _stream_case("end", encode(Kind.END, 6)),
    _stream_case("keepalive", encode(Kind.KEEPALIVE, 6)),
    Case(
        "stream-refuse",
        lambda: encode_refusal(Refusal("overloaded", 1.5)),
        _read_refusal,
        grow=lambda data: data[: HEADER.size] + msgspec.msgpack.encode(["overloaded", 1.5, "new"]),
        refuse=_newer_version,
    ),
    Case(
        "request",
        lambda: encode_request(_request()),
        decode_request,
        grow=changed(_grow_request),
        refuse=changed(_unknown_kind),
    ),
    Case(
        "request-resumed",
        lambda: encode_request(_request(resume=TokenResume((5, 6, 7)))),
        decode_request,
        grow=changed(_grow_request),
    ),
    Case(
        "request-replayed",
        lambda: encode_request(_request(resume=ReplayResume(1234, bytes(range(32))))),
        decode_request,
        grow=changed(_grow_request),
    ),
    Case("answer", _write_parts(PARTS), _read_parts, grow=_grown_parts, refuse=_unknown_part),
    Case("answer-failed", _write_parts(FAILURE), _read_parts, grow=_grown_parts),
    Case("sealing-config", SEALING_CONFIG.encode, _read_sealing_config),
    Case("sealed", _write_sealed, _read_sealed),
]
