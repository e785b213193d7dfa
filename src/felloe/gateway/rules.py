"""From a checked body to inference requests: which parameter goes to the engine, which is carried out here, which is
refused. One request a choice; choices of one answer share id and creation time and differ in their index.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName, RequestId, is_model_name
from felloe.domain.requests import InferenceRequest, Kind, Reach, Usage
from felloe.gateway.decode import check_depth
from felloe.gateway.requests import (
    MOST_INPUTS,
    MOST_PROMPTS,
    AssistantMessage,
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    FunctionSpec,
    GenerationBody,
    JsonSchemaFormat,
    ToolChoice,
)

CARRIED_OUT_HERE = frozenset({"model", "n", "stream", "stream_options", "max_completion_tokens"})
NO_EFFECT = frozenset(
    {
        "metadata",
        "modalities",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
DEFAULT_COMPLETION_TOKENS = 16
_SEEDS = 2**32 - 1
_REACHES: tuple[Reach, ...] = ("device", "network", "market")
_ID_PREFIX: dict[Kind, str] = {"chat": "chatcmpl-", "completion": "cmpl-", "embedding": "embd-"}


_LONGEST_PREFER = 256
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"')
_WAIT = re.compile(rb"(?:^|,)[ \t]*wait[ \t]*=[ \t]*([0-9]{1,9})[ \t]*(?=[,;]|$)", re.IGNORECASE)


class Terms(Struct, frozen=True, kw_only=True):
    """What the gateway adds to a body: an unguessable `token` for the id, the time, the time limit, the reach, and how
    many seconds it may wait for a model to be loaded (None: as the node is configured).
    """

    token: str
    created: int
    deadline: float
    reach: Reach
    wait: float | None = None


class Call(Struct, frozen=True, kw_only=True):
    """One API call: its inference requests, and how their answers are put together."""

    kind: Kind
    requests: tuple[InferenceRequest, ...]
    choices: int = 1
    stream: bool = False
    include_usage: bool = False
    base64: bool = False


def chat_call(body: ChatBody, terms: Terms) -> Call:
    """One request for each of the `n` choices."""
    _check_stream(body)
    _check_chat(body)
    engine_body = _engine_body(body)
    for message in engine_body["messages"]:
        if message["role"] == "developer":
            message["role"] = "system"
        _drop_sdk_additions(message)
    if body.max_completion_tokens is not None:
        if body.max_tokens not in (None, body.max_completion_tokens):
            raise _bad("max_completion_tokens", "differs from `max_tokens`, which means the same")
        engine_body["max_tokens"] = body.max_completion_tokens
    return _generation_call("chat", body, [engine_body], terms)


def completion_call(body: CompletionBody, terms: Terms) -> Call:
    """One request for each prompt and choice: index = prompt x n + choice."""
    _check_stream(body)
    if body.echo:
        raise FelloeError("unsupported_parameter", "`echo` is not supported", param="echo")
    prompts = _texts(body.prompt, "prompt", MOST_PROMPTS)
    if len(prompts) * (body.n or 1) > MOST_PROMPTS:
        raise _bad("n", f"times the number of prompts is more than {MOST_PROMPTS}")
    engine_body = _engine_body(body)
    engine_body.setdefault("max_tokens", DEFAULT_COMPLETION_TOKENS)
    return _generation_call("completion", body, [engine_body | {"prompt": prompt} for prompt in prompts], terms)


def embedding_call(body: EmbeddingBody, terms: Terms) -> Call:
    """One request for all inputs."""
    inputs = _texts(body.input, "input", MOST_INPUTS)
    if "" in inputs:
        raise _bad("input", "has an empty text")
    engine_body: dict[str, Any] = {"input": inputs}
    request = _request("embedding", body.model, engine_body, 0, terms)
    return Call(kind="embedding", requests=(request,), base64=body.encoding_format == "base64")


def chosen_reach(header_values: Sequence[bytes], most: Reach) -> Reach:
    """How far a request may travel: what the `x-felloe-reach` header asks for, at most what policy allows."""
    if not header_values:
        return most
    asked = header_values[0].decode("latin-1")
    for reach in _REACHES:
        if reach == asked and len(header_values) == 1:
            if _REACHES.index(reach) > _REACHES.index(most):
                raise FelloeError("forbidden", "`x-felloe-reach` asks for more than this node's policy allows")
            return reach
    raise FelloeError("invalid_value", "`x-felloe-reach` is `device`, `network` or `market`", param="x-felloe-reach")


def preferred_wait(header_values: Sequence[bytes], most: float) -> float | None:
    """The seconds of `Prefer: wait=N` (RFC 7240 section 4.3), at most `most`; None when no such preference is read.

    The first one counts. A preference that cannot be understood is ignored, as the RFC has it, and so is a header of
    more than 256 bytes.
    """
    value = b",".join(header_values)
    if len(value) > _LONGEST_PREFER:
        return None
    # A quoted number is a number; other quoted text could look like a preference and is none.
    plain = _QUOTED.sub(lambda text: text[0][1:-1] if text[0][1:-1].isdigit() else b"", value)
    found = None if b'"' in plain else _WAIT.search(plain)
    return None if found is None else min(most, float(found[1]))


def total_usage(usages: Sequence[Usage], choices: int) -> Usage:
    """The usage of a whole answer: a prompt counts once for all its `choices`, as OpenAI counts it."""
    prompts = usages[::choices]
    return Usage(
        prompt=sum(usage.prompt for usage in prompts),
        completion=sum(usage.completion for usage in usages),
        cached=sum(usage.cached for usage in prompts),
    )


def check_media(content_types: Sequence[bytes], content_encodings: Sequence[bytes]) -> None:
    """Refuse (`unsupported_media_type`) bodies that are not plain JSON; a compressed one could be a bomb."""
    media = b";".join(content_types).split(b";")[0].strip().lower()
    if len(content_types) != 1 or media != b"application/json":
        raise FelloeError("unsupported_media_type", "the content type is not application/json")
    if any(value.strip().lower() not in (b"identity", b"") for value in content_encodings):
        raise FelloeError("unsupported_media_type", "content encodings are not supported")


def _generation_call(kind: Kind, body: GenerationBody, engine_bodies: Sequence[dict[str, Any]], terms: Terms) -> Call:
    choices = body.n or 1
    requests: list[InferenceRequest] = []
    for engine_body in engine_bodies:
        for _ in range(choices):
            index = len(requests)
            own = engine_body
            if body.seed is not None:
                # Each choice has its own stream of random numbers; 2^32 - 1 means "random" to llama.cpp.
                own = engine_body | {"seed": (body.seed + index) % _SEEDS}
            requests.append(_request(kind, body.model, own, index, terms))
    options = body.stream_options
    return Call(
        kind=kind,
        requests=tuple(requests),
        choices=choices,
        stream=bool(body.stream),
        include_usage=options is not None and bool(options.include_usage),
    )


def _request(kind: Kind, model: str, body: dict[str, Any], index: int, terms: Terms) -> InferenceRequest:
    if not is_model_name(model):
        raise FelloeError("model_not_found", "no model has such a name", param="model")
    return InferenceRequest(
        id=RequestId(_ID_PREFIX[kind] + terms.token),
        kind=kind,
        model=ModelName(model),
        body=body,
        created=terms.created,
        deadline=terms.deadline,
        index=index,
        reach=terms.reach,
        wait=terms.wait,
    )


def _engine_body(body: GenerationBody) -> dict[str, Any]:
    """The parameters that the engine carries out, without those that were not set."""
    content: dict[str, Any] = msgspec.to_builtins(body)
    for name in CARRIED_OUT_HERE | NO_EFFECT:
        content.pop(name, None)
    if isinstance(body.stop, str):
        content["stop"] = [body.stop]
    return content


def _drop_sdk_additions(message: dict[str, Any]) -> None:
    """Remove what OpenAI's SDK has added to an answer that is now sent back as history."""
    message.pop("parsed", None)
    for tool_call in message.get("tool_calls", ()):
        tool_call.pop("index", None)
        tool_call["function"].pop("parsed_arguments", None)


def _check_stream(body: GenerationBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise _bad("stream_options", "is only allowed when `stream` is true")
    if body.stream_options is not None and body.stream_options.include_obfuscation:
        name = "stream_options.include_obfuscation"
        raise FelloeError("unsupported_parameter", f"`{name}` is not supported", param=name)


def _check_chat(body: ChatBody) -> None:
    if body.top_logprobs is not None and not body.logprobs:
        raise _bad("top_logprobs", "is only allowed when `logprobs` is true")
    if body.store:
        raise FelloeError("unsupported_parameter", "`store` is not supported: nothing is kept", param="store")
    functions = [tool.function for tool in body.tools or ()]
    _check_tool_choice(body, functions)
    for position, function in enumerate(functions):
        check_depth(function.parameters, f"tools[{position}].function.parameters")
    if isinstance(body.response_format, JsonSchemaFormat):
        check_depth(body.response_format.json_schema.schema, "response_format.json_schema.schema")
    check_depth(body.chat_template_kwargs, "chat_template_kwargs")
    for message in body.messages:
        if isinstance(message, AssistantMessage):
            check_depth(
                [message.parsed, [call.function.parsed_arguments for call in message.tool_calls or ()]], "messages"
            )


def _check_tool_choice(body: ChatBody, functions: Sequence[FunctionSpec]) -> None:
    if body.tool_choice not in (None, "none", "auto") and not functions:
        raise _bad("tool_choice", "is only allowed with `tools`")
    if isinstance(body.tool_choice, ToolChoice):
        wanted = body.tool_choice.function.name
        if all(function.name != wanted for function in functions):
            raise _bad("tool_choice", "names a function that is not in `tools`")


def _texts(value: str | list[Any], name: str, most: int) -> list[str | list[int]]:
    """What OpenAI allows in `prompt` and `input`, as a list of texts or token id lists."""
    if isinstance(value, str):
        return [value]
    kinds: set[type[object]] = {type(item) for item in value}
    if len(kinds) != 1:
        raise FelloeError("invalid_type", f"`{name}` mixes texts and tokens", param=name)
    texts: list[str | list[int]] = [value] if kinds == {int} else value
    if any(not text for text in texts) and kinds != {str}:
        raise _bad(name, "has an empty list of tokens")
    if len(texts) > most:
        raise _bad(name, f"has more than {most} entries")
    return texts


def _bad(name: str, why: str) -> FelloeError:
    return FelloeError("invalid_value", f"`{name}` {why}", param=name)
