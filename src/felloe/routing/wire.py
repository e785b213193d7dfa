"""How requests and parts are encoded between two nodes, inside the seal.

A request is one msgpack map of `InferenceRequest`. An answer is a series of messages: one flag byte (0 whole or last
fragment, 1 more follows), then msgpack of an array of tagged arrays (`Piece`, `Done`, `Failure`). All parts that are
ready at once share a message; what exceeds `MESSAGE_BYTES` goes in fragments.
"""

from collections.abc import Sequence

import msgspec

from felloe.domain.errors import CATALOGUE, FelloeError
from felloe.domain.ids import is_model_name
from felloe.domain.requests import Done, Failure, InferenceRequest, Piece, ReplayResume, TokenResume

MESSAGE_BYTES = 256 * 1024
ANSWER_MESSAGE_BYTES = 64 * 1024 * 1024
REQUEST_BYTES = 8 * 1024 * 1024
LONGEST_DEADLINE = 24 * 3600.0
_MOST_IDS = 4 * 1024 * 1024
_LARGEST_ID = 2**31 - 1
_LONGEST_ID_TEXT = 128
_LARGEST_INDEX = 1023
_LONGEST_DETAIL = 2000

_WHOLE = b"\x00"
_MORE = b"\x01"

WirePart = Piece | Done | Failure

_encoder = msgspec.msgpack.Encoder()
_parts_decoder = msgspec.msgpack.Decoder(list[WirePart])
_request_decoder = msgspec.msgpack.Decoder(InferenceRequest)


def encode_request(request: InferenceRequest) -> bytes:
    """The request as it is sealed. Raises `invalid_value` for a body that msgpack cannot hold."""
    try:
        return _encoder.encode(request)
    except (UnicodeEncodeError, OverflowError, RecursionError, ValueError, TypeError):
        raise FelloeError("invalid_value", "the request holds a value that cannot be sent to another node") from None


def decode_request(data: bytes) -> InferenceRequest:
    """The request in `data`, checked and bounded. Raises `invalid_value`; the detail never quotes the request."""
    if len(data) > REQUEST_BYTES:
        raise FelloeError("body_too_large", f"a request holds at most {REQUEST_BYTES} bytes")
    try:
        request = _request_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise FelloeError("invalid_value", "the request from another node cannot be read") from None
    fault = _fault(request)
    if fault:
        raise FelloeError("invalid_value", f"the request from another node has a bad {fault}")
    return request


def _fault(request: InferenceRequest) -> str:
    resume = request.resume
    checks = {
        "id": 0 < len(request.id) <= _LONGEST_ID_TEXT,
        "model": is_model_name(request.model),
        "deadline": 0 < request.deadline <= LONGEST_DEADLINE,  # false for NaN
        "index": 0 <= request.index <= _LARGEST_INDEX,
        "created": 0 <= request.created < 2**53,
        "reach": request.reach != "device",
        "resume": not isinstance(resume, ReplayResume) or (resume.length >= 0 and len(resume.digest) == 32),
        "resume's ids": not isinstance(resume, TokenResume)
        or (len(resume.ids) <= _MOST_IDS and all(0 <= number <= _LARGEST_ID for number in resume.ids)),
    }
    return next((name for name, good in checks.items() if not good), "")


def encode_parts(parts: Sequence[WirePart]) -> list[bytes]:
    """`parts` as one message, or as several fragments when they are large."""
    data = _encoder.encode(parts)
    if len(data) <= MESSAGE_BYTES:
        return [_WHOLE + data]
    cuts = range(0, len(data), MESSAGE_BYTES)
    return [
        (_MORE if start + MESSAGE_BYTES < len(data) else _WHOLE) + data[start : start + MESSAGE_BYTES] for start in cuts
    ]


class PartReader:
    """Puts the messages of one answer together again; holds at most `ANSWER_MESSAGE_BYTES`."""

    __slots__ = ("_fragments", "_held")

    def __init__(self) -> None:
        self._fragments: list[bytes] = []
        self._held = 0

    def feed(self, message: bytes) -> list[WirePart]:
        """The parts that `message` completes. Raises `replica_lost` when it cannot be read or is too large."""
        if not self._fragments and message.startswith(_WHOLE):
            return _decode_parts(memoryview(message)[1:])
        flag = message[:1]
        self._held += len(message)
        if flag not in (_WHOLE, _MORE) or self._held > ANSWER_MESSAGE_BYTES:
            raise FelloeError("replica_lost", "the other node sent a message that cannot be read")
        self._fragments.append(message[1:])
        if flag == _MORE:
            return []
        whole = b"".join(self._fragments)
        self._fragments.clear()
        self._held = 0
        return _decode_parts(whole)


def _decode_parts(data: bytes | memoryview) -> list[WirePart]:
    try:
        return _parts_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise FelloeError("replica_lost", "the other node sent a message that cannot be read") from None


def failure_of(error: FelloeError) -> Failure:
    """`error` as it travels."""
    return Failure(error.code, error.detail, error.param, error.retry_after)


def error_of(failure: Failure) -> FelloeError:
    """`failure` as it is raised here; a code that only a newer program knows becomes `replica_lost`."""
    code = failure.code if failure.code in CATALOGUE else "replica_lost"
    detail = failure.detail[:_LONGEST_DETAIL]
    return FelloeError(code, detail, param=failure.param, retry_after=failure.retry_after)
