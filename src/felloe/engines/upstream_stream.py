"""An upstream's stream as ours: bytes pass, only `id`, `created` and `model` change, in place.

The first event is read as JSON and shows what the three fields look like on this server's wire; the following ones
are changed by byte replacement. That is sound because an unescaped `"id":"..."` cannot stand inside a JSON string.
An event is read again when a field is not where it was, when it ends the choice, or when the index must change.
"""

from typing import Any, cast

import msgspec

from felloe.domain.errors import FelloeError
from felloe.domain.requests import InferenceRequest, Usage
from felloe.engines.rendering import ChatFrames

_RUNNING = (b'"finish_reason":null', b'"finish_reason": null')


class StreamRewriter:
    """One choice of one upstream answer. `number` counts its events, `usage` and `finish_reason` come at its end."""

    def __init__(self, request: InferenceRequest) -> None:
        self._request = request
        self._fields: tuple[tuple[str, str | int], ...] = (
            ("id", request.id),
            ("created", request.created),
            ("model", request.model),
        )
        self._changes: list[tuple[bytes, bytes]] = []
        self._first = True
        self.number = 0
        self.usage: Usage | None = None
        self.finish_reason = ""

    def frame(self, payload: bytes) -> bytes:
        """The frame for one event; empty when the event is not for the client. Raises `upstream_failed`."""
        if self._changes and (_RUNNING[0] in payload or _RUNNING[1] in payload):
            changed = self._change(payload)
            if changed is not None:
                self.number += 1
                return b"data: " + changed + b"\n\n"
        return self._read(payload)

    def _change(self, payload: bytes) -> bytes | None:
        for old, new in self._changes:
            if old not in payload:
                return None
            payload = payload.replace(old, new, 1)
        return payload

    def _read(self, payload: bytes) -> bytes:
        event = _decoded(payload)
        if event.get("error") is not None:
            raise FelloeError("upstream_failed", "the upstream broke the answer off with an error")
        choices: Any = event.get("choices")
        usage = event.pop("usage", None) if not choices or self._ends(choices) else None
        if isinstance(usage, dict):
            self.usage = _usage(cast(dict[str, Any], usage))
        if not isinstance(choices, list) or not choices:
            return b""
        role = self._missing_role(cast(list[Any], choices))
        self._learn(payload, event)
        for choice in cast(list[Any], choices):
            if not isinstance(choice, dict):
                raise FelloeError("upstream_failed", "the upstream sent a choice that is no object")
            found = cast(dict[str, Any], choice)
            found["index"] = self._request.index
            if isinstance(found.get("finish_reason"), str):
                self.finish_reason = found["finish_reason"]
        event.update(self._fields)
        self.number += 1
        return role + b"data: " + msgspec.json.encode(event) + b"\n\n"

    def _ends(self, choices: Any) -> bool:
        return any(isinstance(each, dict) and cast(dict[str, Any], each).get("finish_reason") for each in choices)

    def _missing_role(self, choices: list[Any]) -> bytes:
        first, self._first = self._first, False
        if not first or self._request.kind != "chat":
            return b""
        choice: Any = choices[0]
        delta: Any = cast(dict[str, Any], choice).get("delta") if isinstance(choice, dict) else None
        has_role = isinstance(delta, dict) and "role" in cast(dict[str, Any], delta)
        return b"" if has_role else ChatFrames(self._request).role()

    def _learn(self, payload: bytes, event: dict[str, Any]) -> None:
        """Find how this server writes the three fields; without all of them every event is read."""
        self._changes = []
        if self._request.index:
            return
        changes: list[tuple[bytes, bytes]] = []
        for name, value in self._fields:
            if name not in event:
                return
            old, new = msgspec.json.encode(event[name]), msgspec.json.encode(value)
            found = next(
                (
                    (start + old + end, start + new + end)
                    for start in (b'"%b":' % name.encode(), b'"%b": ' % name.encode())
                    for end in (b",", b"}")
                    if start + old + end in payload
                ),
                None,
            )
            if found is None:
                return
            changes.append(found)
        self._changes = changes


def _decoded(payload: bytes) -> dict[str, Any]:
    try:
        event = msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError) as error:
        raise FelloeError("upstream_failed", "the upstream sent an event that is no JSON") from error
    if not isinstance(event, dict):
        raise FelloeError("upstream_failed", "the upstream sent an event that is no object")
    return cast(dict[str, Any], event)


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
