"""Answers that the engine's own parser or grammar must shape: tools, JSON, reasoning.

They go through llama.cpp's /v1/chat/completions, which tells no token ids, so a broken one resumes by replay: the
seed and the ids of tool calls are derived from the request, and another replica then renders the same bytes.
"""

from collections.abc import Awaitable
from typing import Any, cast

import msgspec
from msgspec import Raw, Struct

from felloe.domain.errors import FelloeError
from felloe.domain.ports import Deliver
from felloe.domain.requests import Done, InferenceRequest, Piece, TokenResume, Usage
from felloe.engines import llama_api
from felloe.engines.http_client import Exchange, HttpClient, HttpError
from felloe.engines.llama_api import Properties
from felloe.engines.llama_request import ChatBody, sampling_fields
from felloe.engines.logprobs import Probability, chat_logprobs
from felloe.engines.rendering import ChatFrames
from felloe.engines.schema_rules import check_schema
from felloe.engines.sse import EventSplitter
from felloe.engines.tool_calls import ForcedCall, call_id, call_schema, forced_tools, read_tools

_STREAM_LIMIT = 1024 * 1024 * 1024


class _CallFunction(Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct):
    index: int = 0
    id: str | None = None
    function: _CallFunction | None = None


class _Delta(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Logprobs(Struct):
    content: list[Probability] | None = None


class _Choice(Struct):
    delta: _Delta
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _CachedTokens(Struct):
    cached_tokens: int = 0


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _CachedTokens = msgspec.field(default_factory=_CachedTokens)


class _Event(Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Raw | None = None


_decode_event = msgspec.json.Decoder(_Event).decode


def needs_structure(body: ChatBody, properties: Properties) -> bool:
    """Whether the answer must go through the engine's parser or grammar."""
    offers_tools = body.tool_choice != "none" and (bool(body.tools) or body.tool_choice not in (None, "auto"))
    shaped = body.response_format is not None and body.response_format.type != "text"
    return offers_tools or shaped or properties.reasons


async def structured_answer(
    client: HttpClient,
    properties: Properties,
    request: InferenceRequest,
    body: ChatBody,
    deliver: Deliver,
    seconds: float,
) -> Done:
    """Answer one choice. A replay is answered from its start; whoever asked for it compares."""
    if isinstance(request.resume, TokenResume) and request.resume.ids:
        raise FelloeError("resume_diverged", "this kind of answer cannot go on from token ids")
    fields, forced = _engine_fields(body, properties, request)
    with await client.request(
        "POST",
        "/v1/chat/completions",
        msgspec.json.encode(fields),
        seconds=seconds,
        body_limit=_STREAM_LIMIT,
        reuse=False,
    ) as exchange:
        await llama_api.raise_for_status(exchange, "messages")
        stream = _Stream(exchange, _Renderer(request, body, forced), deliver)
        await exchange.pump(stream.consume)
    if stream.done is None:
        raise HttpError("broken", "the stream ended without an end")
    return stream.done


class _Stream:
    """Takes the engine's events as they come and delivers what they become; `done` holds the accounts at the end."""

    def __init__(self, exchange: Exchange, renderer: "_Renderer", deliver: Deliver) -> None:
        self._exchange = exchange
        self._renderer = renderer
        self._deliver = deliver
        self._splitter = EventSplitter()
        self._finish_reason: str | None = None
        self.done: Done | None = None

    def consume(self, data: bytes) -> Awaitable[None] | None:
        frames: list[bytes] = []
        for payload in self._splitter.feed(data):
            if payload == b"[DONE]":
                continue
            event = _decode_event(payload)
            if event.error is not None:
                raise FelloeError("engine_failed", "the engine broke the answer off with an error")
            for choice in event.choices:
                frames.extend(self._renderer.frames(choice))
                self._finish_reason = choice.finish_reason or self._finish_reason
            if event.usage is not None and self._finish_reason is not None:
                reason, last = self._renderer.finish(self._finish_reason)
                frames.extend(last)
                self.done = Done(_usage(event.usage), reason)
                self._exchange.stop()
                break
        return self._deliver(Piece(self._renderer.number, (), b"".join(frames))) if frames else None


def _usage(usage: _Usage) -> Usage:
    return Usage(
        prompt=usage.prompt_tokens,
        completion=usage.completion_tokens,
        cached=usage.prompt_tokens_details.cached_tokens,
    )


def _engine_fields(body: ChatBody, properties: Properties, request: InferenceRequest) -> tuple[dict[str, Any], bool]:
    """The engine's body, and whether a tool call is forced."""
    fields = sampling_fields(body, request, 0)
    fields.update(messages=body.messages, stream=True, stream_options={"include_usage": True}, cache_prompt=True)
    if body.limit is not None:
        fields["max_tokens"] = body.limit
    if body.logprobs:
        fields.update(logprobs=True, top_logprobs=max(1, body.top_logprobs or 0))
    for name in ("chat_template_kwargs", "reasoning_effort", "parallel_tool_calls"):
        if (value := getattr(body, name)) is not None:
            fields[name] = value
    schema = _response_schema(body)
    if schema is not None:
        fields["response_format"] = schema
    return fields, _add_tools(fields, body, properties)


def _response_schema(body: ChatBody) -> dict[str, Any] | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "json_object"}
    schema: object = wanted.json_schema.get("schema") if isinstance(wanted.json_schema, dict) else None
    if not isinstance(schema, dict):
        raise FelloeError("invalid_value", "json_schema holds no schema", param="response_format.json_schema")
    check_schema(cast(object, schema), "response_format.json_schema")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def _add_tools(fields: dict[str, Any], body: ChatBody, properties: Properties) -> bool:
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise FelloeError("invalid_value", "tool_choice needs tools", param="tool_choice")
        return False
    if not properties.knows_tools:
        raise FelloeError("unsupported_capability", "the model's template knows no tools", param="tools")
    tools = read_tools(body.tools)
    forced = forced_tools(body.tool_choice, tools)
    fields["tools"] = body.tools
    if not forced:
        fields["tool_choice"] = "none" if body.tool_choice == "none" else "auto"
        return False
    if "response_format" in fields:
        raise FelloeError("invalid_value", "a forced tool call leaves no room for it", param="response_format")
    # llama.cpp itself lets a model write text for ever before a "required" call; a grammar does not.
    fields["tool_choice"] = "none"
    fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "call", "schema": call_schema(forced)}}
    return True


class _Renderer:
    """Turns the engine's deltas into our frames; `number` counts the engine's events."""

    def __init__(self, request: InferenceRequest, body: ChatBody, forced: bool) -> None:
        self._request = request
        self._frames = ChatFrames(request)
        self._top = (body.top_logprobs or 0) if body.logprobs else None
        self._forced = ForcedCall() if forced else None
        self._forced_begun = False
        self._called = False
        self._role_due = True
        self.number = 0

    def frames(self, choice: _Choice) -> list[bytes]:
        self.number += 1
        out: list[bytes] = []
        if self._role_due:
            self._role_due = False
            out.append(self._frames.role())
        delta = choice.delta
        if delta.reasoning_content:
            out.append(self._frames.delta({"reasoning_content": delta.reasoning_content}))
        if delta.content and self._forced is not None:
            out.extend(self._forced_frames(self._forced, self._forced.feed(delta.content)))
        elif delta.content:
            out.append(self._text(delta.content, choice.logprobs))
        out.extend(self._call(call) for call in delta.tool_calls or ())
        return out

    def _text(self, text: str, logprobs: _Logprobs | None) -> bytes:
        if self._top is None or logprobs is None:
            return self._frames.text(text)
        return self._frames.text_with_logprobs(text, chat_logprobs(logprobs.content or (), self._top))

    def _call(self, call: _Call) -> bytes:
        self._called = True
        function = call.function or _CallFunction()
        shown: dict[str, Any] = {"index": call.index}
        parts = {"name": function.name, "arguments": function.arguments}
        if call.id is not None or function.name is not None:
            # The engine's own ids are random; a replay would differ.
            shown.update(id=call_id(self._request, call.index), type="function")
        shown["function"] = {name: value for name, value in parts.items() if value is not None}
        return self._frames.delta({"tool_calls": [shown]})

    def _forced_frames(self, forced: ForcedCall, arguments: str) -> list[bytes]:
        out: list[bytes] = []
        if forced.name is not None and not self._forced_begun:
            self._forced_begun = True
            out.append(self._call(_Call(0, "", _CallFunction(forced.name, ""))))
        if arguments:
            out.append(self._call(_Call(0, None, _CallFunction(None, arguments))))
        return out

    def finish(self, reason: str) -> tuple[str, list[bytes]]:
        """The finish reason, and the last frames."""
        out: list[bytes] = []
        if self._forced is not None:
            rest = self._forced.finish() if reason != "length" else ""
            out.extend(self._forced_frames(self._forced, rest))
        if self._called and reason == "stop":
            reason = "tool_calls"
        out.append(self._frames.finish(reason))
        return reason, out
