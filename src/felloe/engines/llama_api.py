"""llama.cpp's HTTP API as calls: template, tokenizer, properties; and its errors as ours."""

from typing import Any

import msgspec
from msgspec import Struct

from felloe.domain.errors import FelloeError
from felloe.engines.http_client import Exchange, HttpClient, HttpError

_REASONING_MARKS = ("<think>", "<|channel|>", "[THINK]", "<seed:think>", "reasoning_content", "enable_thinking")


class TemplateCapabilities(Struct):
    supports_tools: bool = False
    supports_tool_calls: bool = False


class GenerationSettings(Struct):
    n_ctx: int


class Properties(Struct):
    """What the running engine says about itself; `n_ctx` is what one slot holds."""

    default_generation_settings: GenerationSettings
    total_slots: int
    chat_template: str = ""
    chat_template_caps: TemplateCapabilities = msgspec.field(default_factory=TemplateCapabilities)

    @property
    def reasons(self) -> bool:
        """Whether answers may hold a reasoning part, which only the engine's own parser can separate."""
        return any(mark in self.chat_template for mark in _REASONING_MARKS)

    @property
    def knows_tools(self) -> bool:
        return self.chat_template_caps.supports_tools or self.chat_template_caps.supports_tool_calls


class _ErrorBody(Struct):
    message: str = ""
    type: str = ""
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class ErrorAnswer(Struct):
    """What llama.cpp sends instead of an answer."""

    error: _ErrorBody


class _Prompt(Struct):
    prompt: str


class _Tokens(Struct):
    tokens: list[int]


class _Content(Struct):
    content: str


async def call(client: HttpClient, path: str, body: dict[str, Any] | None, seconds: float) -> bytes:
    """One short request; raises `HttpError` or what `refusal` makes of the engine's error."""
    method = "GET" if body is None else "POST"
    data = b"" if body is None else msgspec.json.encode(body)
    with await client.request(method, path, data, seconds=seconds, body_limit=64 * 1024 * 1024) as exchange:
        answer = await exchange.read_all()
        if exchange.status != 200:
            raise refusal(answer, exchange.status, None)
        return answer


async def properties(client: HttpClient, seconds: float) -> Properties:
    return msgspec.json.decode(await call(client, "/props", None, seconds), type=Properties)


async def apply_template(client: HttpClient, fields: dict[str, Any], seconds: float) -> str:
    """The prompt text of a chat; `fields` are `messages`, `tools`, `chat_template_kwargs`."""
    return msgspec.json.decode(await call(client, "/apply-template", fields, seconds), type=_Prompt).prompt


async def tokenize(client: HttpClient, text: str, *, as_prompt: bool, seconds: float) -> list[int]:
    """Token ids; `as_prompt` adds the begin token and reads special tokens, as the engine does with a prompt."""
    body = {"content": text, "add_special": as_prompt, "parse_special": as_prompt}
    return msgspec.json.decode(await call(client, "/tokenize", body, seconds), type=_Tokens).tokens


async def detokenize(client: HttpClient, ids: tuple[int, ...], seconds: float) -> str:
    return msgspec.json.decode(await call(client, "/detokenize", {"tokens": ids}, seconds), type=_Content).content


async def raise_for_status(exchange: Exchange, param: str | None) -> None:
    """Turn an error answer into a `FelloeError`."""
    if exchange.status != 200:
        raise refusal(await exchange.read_all(), exchange.status, param)


def refusal(answer: bytes, status: int, param: str | None) -> FelloeError:
    """Our error for llama.cpp's. Its own words are repeated only where they cannot quote a prompt."""
    try:
        error = msgspec.json.decode(answer, type=ErrorAnswer).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return FelloeError("engine_failed", f"the engine answered status {status} without a reason")
    if error.type == "exceed_context_size_error":
        detail = f"the prompt has {error.n_prompt_tokens} tokens; the model holds {error.n_ctx} here"
        return FelloeError("context_length_exceeded", detail, param=param)
    if "too large to process" in error.message:
        return FelloeError("context_length_exceeded", "an input has more tokens than the engine takes", param=param)
    if "JSON schema" in error.message or "grammar" in error.message:
        return FelloeError("invalid_value", "the engine cannot follow this JSON schema", param="response_format")
    if "is not supported" in error.message and "input" in error.message:
        return FelloeError("unsupported_capability", "the model reads text only", param=param)
    if "does not support embeddings" in error.message:
        return FelloeError("unsupported_capability", "the model was loaded without embeddings")
    if status < 500:
        return FelloeError("invalid_value", _refused_words(error.message, param), param=param)
    return FelloeError("engine_failed", f"the engine answered status {status}, type {error.type[:64]!r}")


def _refused_words(message: str, param: str | None) -> str:
    if message.startswith(("Field '", "Prompt contains invalid tokens", "All non-assistant", "Expected '")):
        return message[:200]
    return f"the engine could not use {param or 'the request'}"


def lost_or_late(error: HttpError) -> FelloeError:
    """Our error for an exchange that failed below HTTP."""
    if error.kind == "timeout":
        return FelloeError("deadline_exceeded", "the engine did not finish in the time allowed")
    if error.kind in ("broken", "connect"):
        return FelloeError("replica_lost", "the engine ended while it was answering")
    return FelloeError("engine_failed", f"the engine sent no proper answer: {error}")
