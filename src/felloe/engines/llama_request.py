"""What an OpenAI body means to llama.cpp: one typed reading of it, and the JSON that the engine is sent.

Every parameter is known here or refused by name; none is ignored in silence.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from felloe.domain.errors import FelloeError
from felloe.domain.requests import InferenceRequest, TokenResume
from felloe.engines.rules import derived_seed

Finite = Annotated[float, Meta(ge=-1e6, le=1e6)]
Positive = Annotated[float, Meta(ge=0, le=1e6)]
StopString = Annotated[str, Meta(min_length=1, max_length=1000)]
Stops = StopString | Annotated[list[StopString], Meta(max_length=16)]

_UNUSED: dict[str, tuple[Any, ...]] = {
    # They have no effect on an answer that is made here; a value that asks for one is refused.
    "user": (),
    "metadata": (),
    "safety_identifier": (),
    "prompt_cache_key": (),
    "store": (False, None),
    "service_tier": ("auto", "default", None),
    "modalities": (["text"], None),
    "best_of": (1, None),
    "echo": (False, None),
    "suffix": ("", None),
}


class Sampling(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters that chat and text completions share; names and ranges as OpenAI or llama.cpp give them."""

    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] | None = None
    seed: int | None = None
    stop: Stops | None = None
    # llama.cpp's own
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | UnsetType = UNSET
    min_p: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    typical_p: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    top_n_sigma: Finite | UnsetType = UNSET
    repeat_penalty: Annotated[float, Meta(ge=0, le=100)] | UnsetType = UNSET
    repeat_last_n: Annotated[int, Meta(ge=-1, le=2**20)] | UnsetType = UNSET
    mirostat: Literal[0, 1, 2] | UnsetType = UNSET
    mirostat_tau: Positive | UnsetType = UNSET
    mirostat_eta: Positive | UnsetType = UNSET
    dry_multiplier: Positive | UnsetType = UNSET
    dry_base: Positive | UnsetType = UNSET
    dry_allowed_length: Annotated[int, Meta(ge=0, le=2**20)] | UnsetType = UNSET
    dry_penalty_last_n: Annotated[int, Meta(ge=-1, le=2**20)] | UnsetType = UNSET
    dry_sequence_breakers: Annotated[list[StopString], Meta(min_length=1, max_length=16)] | UnsetType = UNSET
    xtc_probability: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    xtc_threshold: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    dynatemp_range: Positive | UnsetType = UNSET
    dynatemp_exponent: Positive | UnsetType = UNSET
    ignore_eos: bool | UnsetType = UNSET

    @property
    def limit(self) -> int | None:
        """How many tokens the answer may hold."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class ResponseFormat(Struct, frozen=True, kw_only=True):
    """`response_format`; the schema itself is checked by `check_schema`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | UnsetType = UNSET


class ChatBody(Sampling, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A chat body, less what the gateway carries out itself."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=10000)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: Annotated[dict[str, bool | int | str], Meta(max_length=32)] | None = None
    reasoning_effort: Annotated[str, Meta(max_length=16)] | None = None


class CompletionBody(Sampling, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A text completion body with one prompt."""

    prompt: str | Annotated[list[Annotated[int, Meta(ge=0, le=2**31 - 1)]], Meta(min_length=1)]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


Body = ChatBody | CompletionBody
_BodyType = TypeVar("_BodyType", ChatBody, CompletionBody)


def read_chat(body: Mapping[str, Any]) -> ChatBody:
    """Raises `invalid_type`, `unknown_parameter` or `unsupported_parameter`, naming the parameter."""
    return _read(body, ChatBody)


def read_completion(body: Mapping[str, Any]) -> CompletionBody:
    """Raises as `read_chat` does."""
    return _read(body, CompletionBody)


def _read(body: Mapping[str, Any], kind: type[_BodyType]) -> _BodyType:
    used = {name: value for name, value in body.items() if not _has_no_effect(name, value)}
    known = set(kind.__struct_fields__)
    unknown = next((name for name in used if name not in known), None)
    if unknown is not None:
        code = "unsupported_parameter" if unknown in _UNUSED else "unknown_parameter"
        raise FelloeError(code, f"{unknown[:64]!r} is not supported by this engine", param=unknown[:64])
    try:
        return msgspec.convert(used, kind)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        param = place.strip("`").lstrip(".") or None
        raise FelloeError("invalid_type", reason, param=param) from error


def _has_no_effect(name: str, value: Any) -> bool:
    if name not in _UNUSED:
        return False
    allowed = _UNUSED[name]
    return not allowed or value in allowed


def sampling_fields(body: Body, request: InferenceRequest, done_tokens: int) -> dict[str, Any]:
    """The engine's sampling fields. Without a seed one is derived, so that another replica draws the same numbers.

    A continued answer draws from a fresh stream, derived from where it goes on.
    """
    fields: dict[str, Any] = {}
    for name in Sampling.__struct_fields__:
        value = getattr(body, name)
        if value is not None and value is not UNSET and name not in ("max_tokens", "max_completion_tokens"):
            fields[name] = value
    if isinstance(body.stop, str):
        fields["stop"] = [body.stop]
    if body.logit_bias is not None:
        fields["logit_bias"] = _logit_bias(body.logit_bias)
    fields["seed"] = _seed(body.seed, request, done_tokens)
    return fields


def _logit_bias(bias: Mapping[str, float]) -> list[list[float]]:
    try:
        return [[int(token), value] for token, value in bias.items()]
    except ValueError as error:
        raise FelloeError("invalid_value", "the keys of logit_bias are token ids", param="logit_bias") from error


def _seed(seed: int | None, request: InferenceRequest, done_tokens: int) -> int:
    if seed is None:
        return derived_seed(request.id, request.index, done_tokens)
    if request.index or done_tokens:
        return derived_seed(seed, request.index, done_tokens)
    return seed % 0xFFFFFFFF


def native_body(body: Body, request: InferenceRequest, prompt: str | list[int]) -> dict[str, Any]:
    """The body of llama.cpp's own /completion. `prompt` already holds the ids of a resumed answer."""
    done = len(request.resume.ids) if isinstance(request.resume, TokenResume) else 0
    fields = sampling_fields(body, request, done)
    fields.update(prompt=prompt, stream=True, return_tokens=True, cache_prompt=True)
    fields["n_predict"] = -1 if body.limit is None else body.limit - done
    probabilities = _probabilities(body)
    if probabilities is not None:
        fields["n_probs"] = max(1, probabilities)
    return fields


def _probabilities(body: Body) -> int | None:
    if isinstance(body, CompletionBody):
        return body.logprobs
    if body.top_logprobs and not body.logprobs:
        raise FelloeError("invalid_value", "top_logprobs needs logprobs", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None
