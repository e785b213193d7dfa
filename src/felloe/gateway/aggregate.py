"""A streamed answer put together into the one object that a client without streaming gets.

Reads the frames that engines render; keeps every field that OpenAI's API defines for a choice.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct, field

from felloe.domain.errors import FelloeError
from felloe.domain.requests import Usage
from felloe.gateway.rules import Call


class _FunctionDelta(Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCallDelta(Struct):
    index: int = 0
    id: str | None = None
    type: str | None = None
    function: _FunctionDelta | None = None


class _Delta(Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCallDelta] | None = None


class _ChoiceFrame(Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


class _Frame(Struct):
    choices: list[_ChoiceFrame] = field(default_factory=list[_ChoiceFrame])


_FRAMES = msgspec.json.Decoder(_Frame)


class _Choice:
    def __init__(self, index: int) -> None:
        self.index = index
        self.texts: list[str] = []
        self.refusals: list[str] = []
        self.reasoning: list[str] = []
        self.tool_calls: dict[int, dict[str, Any]] = {}
        self.logprobs: dict[str, Any] | None = None
        self.finish_reason: str | None = None

    def add(self, frame: _ChoiceFrame) -> None:
        if frame.text:
            self.texts.append(frame.text)
        if frame.delta is not None:
            self._add_delta(frame.delta)
        if frame.logprobs is not None:
            self.logprobs = _joined(self.logprobs, frame.logprobs)
        if frame.finish_reason is not None:
            self.finish_reason = frame.finish_reason

    def _add_delta(self, delta: _Delta) -> None:
        for parts, text in (
            (self.texts, delta.content),
            (self.refusals, delta.refusal),
            (self.reasoning, delta.reasoning_content),
        ):
            if text:
                parts.append(text)
        for part in delta.tool_calls or ():
            call = self.tool_calls.setdefault(
                part.index, {"id": "", "type": "function", "function": {"name": "", "arguments": []}}
            )
            call["id"] = part.id or call["id"]
            if part.function is not None:
                call["function"]["name"] += part.function.name or ""
                call["function"]["arguments"].append(part.function.arguments or "")

    def as_completion(self) -> dict[str, Any]:
        return {
            "text": "".join(self.texts),
            "index": self.index,
            "logprobs": self.logprobs,
            "finish_reason": self.finish_reason,
        }

    def as_chat(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant"}
        text = "".join(self.texts)
        message["content"] = text if text or not (self.tool_calls or self.refusals) else None
        message["refusal"] = "".join(self.refusals) or None
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.tool_calls:
            calls = [self.tool_calls[position] for position in sorted(self.tool_calls)]
            for call in calls:
                call["function"]["arguments"] = "".join(call["function"]["arguments"])
            message["tool_calls"] = calls
        logprobs = None if self.logprobs is None else {"content": None, "refusal": None} | self.logprobs
        return {
            "index": self.index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        }


class Aggregate:
    """Collects the frames of a chat or text completion. Frames beyond `most_bytes` fail with `upstream_failed`."""

    def __init__(self, call: Call, most_bytes: int) -> None:
        self._call = call
        self._left = most_bytes
        self._choices = {request.index: _Choice(request.index) for request in call.requests}

    def add(self, frames: bytes) -> None:
        """Take over the next frames."""
        self._left -= len(frames)
        if self._left < 0:
            raise FelloeError("upstream_failed", "the answer is larger than this node accepts")
        try:
            for data in _events(frames):
                for choice in _FRAMES.decode(data).choices:
                    self._choices[choice.index].add(choice)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError) as error:
            raise FelloeError("upstream_failed", "the answer cannot be read") from error

    def render(self, usage: Usage) -> bytes:
        """The JSON body of the answer."""
        first = self._call.requests[0]
        chat = self._call.kind == "chat"
        return msgspec.json.encode(
            {
                "id": first.id,
                "object": "chat.completion" if chat else "text_completion",
                "created": first.created,
                "model": first.model,
                "choices": [choice.as_chat() if chat else choice.as_completion() for choice in self._choices.values()],
                "usage": usage_object(usage),
            }
        )


def usage_object(usage: Usage) -> dict[str, Any]:
    """Usage as OpenAI's API shows it."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


def usage_event(call: Call, usage: Usage) -> bytes:
    """The event that `stream_options.include_usage` asks for: no choices, the usage of the whole answer."""
    first = call.requests[0]
    content: dict[str, Any] = {
        "id": first.id,
        "object": "chat.completion.chunk" if call.kind == "chat" else "text_completion",
        "created": first.created,
        "model": first.model,
        "choices": [],
        "usage": usage_object(usage),
    }
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


def with_null_usage(frames: bytes) -> bytes:
    """Add `"usage":null` to each frame, as OpenAI does when usage follows at the end.

    A blank line ends an event and cannot occur inside JSON, so the last brace of each event is found by it.
    """
    return frames.replace(b"}\n\n", b',"usage":null}\n\n')


def _events(frames: bytes) -> Iterator[bytes]:
    for event in frames.split(b"\n\n"):
        if event.startswith(b"data:"):
            yield event[5:]


def _joined(before: dict[str, Any] | None, more: dict[str, Any]) -> dict[str, Any]:
    """Log probabilities of one frame after those before: lists are appended to, the rest is taken over."""
    if before is None:
        return more
    for name, value in more.items():
        if isinstance(value, list) and isinstance(before.get(name), list):
            before[name].extend(value)
        elif value is not None:
            before[name] = value
    return before
