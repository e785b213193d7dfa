"""An upstream's stream as ours: bytes pass, only `id`, `created` and `model` change, in place.

Theory of operation. Servers write the three fields before the choices (vLLM, Ollama, OpenAI) or after them
(llama.cpp), the same in every event. An event that is read as JSON shows how: the bytes up to the last field before the
choices are the head, the bytes from the first field after them the tail. An event that has the same head and tail and
ends no choice differs in nothing else that concerns us, so head and tail are exchanged for ours and it passes unread.
That is sound because an unescaped `"id":"..."` cannot stand inside a JSON string. Other events are read: the first,
one whose `created` moved on, the last. An event is written anew only where its content asks for it (an index that must
change, the usage that is taken out), so that a replay comes out the same to the byte.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
from msgspec import UNSET, Raw, Struct

from felloe.domain.errors import FelloeError
from felloe.domain.ports import Deliver
from felloe.domain.requests import InferenceRequest, Piece, Usage
from felloe.engines.http_client import Exchange
from felloe.engines.rendering import ChatFrames
from felloe.engines.sse import EventSplitter

_RUNNING = (b'"finish_reason":null', b'"finish_reason": null')
_KEYS = ((b'"id":', b'"id": '), (b'"created":', b'"created": '), (b'"model":', b'"model": '))
_CHOICES = b'"choices":'
_AFTER_A_FIELD = (b",", b"}")
_START = b"data: "
_END = b"\n\n"
_LF, _CR = b"\n\r"
_UNKNOWN = b"\n"  # no event begins with it
_LAST_BYTES_SECONDS = 0.05


class _Choice(Struct):
    index: Any = None
    finish_reason: Any = None
    delta: Any = None


class _Event(Struct):
    """What is looked at in an event; the three fields as they are written."""

    id: Raw = Raw()
    created: Raw = Raw()
    model: Raw = Raw()
    choices: list[_Choice] | None = None
    usage: Any = UNSET
    error: Any = None


_Decoded = TypeVar("_Decoded")
_decode_event = msgspec.json.Decoder(_Event).decode


class AnswerStream:
    """Takes the body of one upstream answer as it comes and delivers its events; raises `upstream_failed`.

    At its end `finish_reason` and `usage` are known; `closed` tells that the server said `[DONE]`.
    """

    def __init__(self, request: InferenceRequest, exchange: Exchange, deliver: Deliver) -> None:
        self._rewriter = StreamRewriter(request)
        self._splitter = EventSplitter()
        self._exchange = exchange
        self._deliver = deliver
        self._between_events = True
        self.closed = False

    @property
    def number(self) -> int:
        return self._rewriter.number

    @property
    def usage(self) -> Usage | None:
        return self._rewriter.usage

    @property
    def finish_reason(self) -> str:
        return self._rewriter.finish_reason

    def consume(self, data: bytes) -> Awaitable[None] | None:
        """One read of the server's socket; nearly always it is one event, which passes."""
        if self._between_events:
            frame = self._rewriter.pass_on(data, self._rewriter.running)
            if frame is not None:
                return self._deliver(Piece(self._rewriter.number, (), frame))
        return self._consume_any(data)

    def _consume_any(self, data: bytes) -> Awaitable[None] | None:
        if self.closed:
            return None
        frames: list[bytes] = []
        for payload in self._splitter.feed(data):
            if payload == b"[DONE]":
                self.closed = True
                if not self._exchange.complete:
                    # Give the end of the body a moment, so that the connection can be used again.
                    self._exchange.expire_in(_LAST_BYTES_SECONDS)
                break
            frames.append(self._rewriter.frame(payload))
        self._between_events = self._splitter.is_empty and not self.closed
        joined = b"".join(frames)
        return self._deliver(Piece(self._rewriter.number, (), joined)) if joined else None


class StreamRewriter:
    """One choice of one upstream answer. `number` counts its events, `usage` and `finish_reason` come at its end."""

    def __init__(self, request: InferenceRequest) -> None:
        self._request = request
        self._first = True
        self._head = self._tail = _UNKNOWN
        self._our_head = self._our_tail = b""
        self._middle = slice(0)
        self.running = _RUNNING[0]
        self.number = 0
        self.usage: Usage | None = None
        self.finish_reason = ""

    def pass_on(self, event: bytes, mark: bytes) -> bytes | None:
        """The frame for `event`; None unless it is one whole event with the known head and tail, and `mark` between.

        An event with the mark `running` ends no choice and need not be read.
        """
        if event.startswith(self._head) and event.endswith(self._tail):
            middle = event[self._middle]
            if mark in middle and _LF not in middle and _CR not in middle:
                self.number += 1
                return self._our_head + middle + self._our_tail
        return None

    def frame(self, payload: bytes) -> bytes:
        """The frame for one event; empty when the event is not for the client. Raises `upstream_failed`."""
        return self.pass_on(_START + payload + _END, self.running) or self._read(payload)

    def _read(self, payload: bytes) -> bytes:
        event = _decoded(payload, _decode_event)
        if event.error is not None:
            raise FelloeError("upstream_failed", "the upstream broke the answer off with an error")
        choices = event.choices or ()
        ends = any(choice.finish_reason for choice in choices)
        usage: Any = event.usage if ends or not choices else UNSET
        if isinstance(usage, dict):
            self.usage = _usage(cast(dict[str, Any], usage))
        if not choices:
            return b""
        for choice in choices:
            if isinstance(choice.finish_reason, str):
                self.finish_reason = choice.finish_reason
        role = self._missing_role(choices[0])
        if usage is UNSET and all(choice.index == self._request.index for choice in choices):
            frame = self.pass_on(_START + payload + _END, b"")
            if frame is None and self._learn(payload, event):
                frame = self.pass_on(_START + payload + _END, b"")
            if frame is not None:
                return role + frame
        self.number += 1
        return role + self._written_anew(payload, ends)

    def _missing_role(self, choice: _Choice) -> bytes:
        first, self._first = self._first, False
        if not first or self._request.kind != "chat":
            return b""
        has_role = isinstance(choice.delta, dict) and "role" in cast(dict[str, Any], choice.delta)
        return b"" if has_role else ChatFrames(self._request).role()

    def _written_anew(self, payload: bytes, ends: bool) -> bytes:
        """The frame for an event in which more must change than the three fields, or in which they were not found."""
        event: dict[str, Any] = _decoded(payload, msgspec.json.decode)
        if ends:
            event.pop("usage", None)
        for choice in event["choices"]:
            choice["index"] = self._request.index
        event.update(id=self._request.id, created=self._request.created, model=self._request.model)
        return _START + msgspec.json.encode(event) + _END

    def _learn(self, payload: bytes, event: _Event) -> bool:
        """Find head and tail in an event; while a field is not found, every event is read."""
        self._head = self._tail = _UNKNOWN
        middle = payload.find(_CHOICES)
        if middle < 0:
            return False
        places: list[_Place] = []
        ours = (self._request.id, self._request.created, self._request.model)
        for keys, their_value, our_value in zip(_KEYS, (event.id, event.created, event.model), ours, strict=True):
            place = _find(payload, middle, keys, their_value, our_value)
            if place is None:
                return False
            places.append(place)
        places.sort()
        before = [place for place in places if place.start < middle]
        after = places[len(before) :]
        start = before[-1].end if before else 0
        end = after[0].start if after else len(payload)
        self._head = _START + payload[:start]
        self._tail = payload[end:] + _END
        self._middle = slice(len(self._head), -len(self._tail))
        self._our_head = _START + _replaced(payload, 0, start, before)
        self._our_tail = _replaced(payload, end, len(payload), after) + _END
        self.running = _RUNNING[0] if _RUNNING[0] in payload else _RUNNING[1]
        return True


class _Place(NamedTuple):
    """Where a field stands in an event, and what is to stand there."""

    start: int
    end: int
    ours: bytes


def _find(
    payload: bytes, middle: int, keys: tuple[bytes, bytes], their_value: Raw, our_value: str | int
) -> _Place | None:
    """A field of the event itself: it stands before the choices, or after all of them."""
    for key in keys:
        field = key + bytes(their_value)
        start = payload.find(field, 0, middle)
        if start < 0:
            start = payload.rfind(field, middle)
        end = start + len(field)
        if start >= 0 and payload[end : end + 1] in _AFTER_A_FIELD:
            return _Place(start, end, key + msgspec.json.encode(our_value))
    return None


def _replaced(payload: bytes, start: int, end: int, places: Sequence[_Place]) -> bytes:
    """`payload[start:end]` with our fields in their places."""
    out = b""
    for place in places:
        out += payload[start : place.start] + place.ours
        start = place.end
    return out + payload[start:end]


def _decoded(payload: bytes, decode: Callable[[bytes], _Decoded]) -> _Decoded:
    try:
        return decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FelloeError("upstream_failed", "the upstream sent an event that cannot be read") from error


def _usage(fields: dict[str, Any]) -> Usage:
    details: Any = fields.get("prompt_tokens_details")
    cached: Any = cast(dict[str, Any], details).get("cached_tokens") if isinstance(details, dict) else 0
    return Usage(
        prompt=_count(fields.get("prompt_tokens")),
        completion=_count(fields.get("completion_tokens")),
        cached=_count(cached),
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
