"""The bodies that clients send, as types: msgspec checks each field while it decodes, and /openapi.json shows the same.

A field typed `None` is an OpenAI parameter that is not supported here: null is fine, anything else is refused.
Sources: OpenAI's API reference (chat completions, completions, embeddings) and llama.cpp's server for the extras.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

MOST_MESSAGES = 4096
MOST_CHOICES = 16
MOST_PROMPTS = 64
MOST_INPUTS = 2048
_INT32 = 2**31 - 1
_INT64 = 2**63 - 1

Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
TokenId = Annotated[int, Meta(ge=0, le=_INT32)]
Window = Annotated[int, Meta(ge=-1, le=_INT32)]
FunctionName = Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]{1,128}$")]
# Only described: a name that does not fit is a model that does not exist.
ModelText = Annotated[str, Meta(extra_json_schema={"pattern": "^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$"})]
StopString = Annotated[str, Meta(min_length=1, max_length=512)]
JsonObject = dict[str, Any]
OnlyFalse = Annotated[bool, Meta(extra_json_schema={"const": False})]
Texts = str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
"""A text, texts, the token ids of one text, or of several; msgspec cannot tell lists apart, so the rules do."""


class _Strict(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all parts of a body share."""


class TextPart(_Strict, kw_only=True, tag_field="type", tag="text"):
    """A piece of a message's text."""

    text: str


class RefusalPart(_Strict, kw_only=True, tag_field="type", tag="refusal"):
    """A refusal that the assistant gave before."""

    refusal: str


TextContent = str | Annotated[list[TextPart], Meta(min_length=1, max_length=MOST_MESSAGES)]


class FunctionCall(_Strict, kw_only=True):
    """Which function the assistant called; `arguments` is JSON text.

    `parsed_arguments` is what OpenAI's SDK adds to an answer that is sent back; it has no effect.
    """

    name: FunctionName
    arguments: str
    parsed_arguments: Any = None


class ToolCall(_Strict, kw_only=True, tag_field="type", tag="function"):
    """A call that the assistant made before. `index` is left over from streaming and has no effect."""

    id: str
    function: FunctionCall
    index: int | None = None


class SystemMessage(_Strict, kw_only=True, tag_field="role", tag="system"):
    """Instructions to the model."""

    content: TextContent
    name: str | None = None


class DeveloperMessage(_Strict, kw_only=True, tag_field="role", tag="developer"):
    """Instructions to the model; the same as `system`."""

    content: TextContent
    name: str | None = None


class UserMessage(_Strict, kw_only=True, tag_field="role", tag="user"):
    """What the user says."""

    content: TextContent
    name: str | None = None


class AssistantMessage(_Strict, kw_only=True, tag_field="role", tag="assistant"):
    """What the model said before. `parsed` is what OpenAI's SDK adds; it has no effect."""

    content: str | Annotated[list[TextPart | RefusalPart], Meta(min_length=1, max_length=MOST_MESSAGES)] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[ToolCall], Meta(min_length=1, max_length=256)] | None = None
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    parsed: Any = None
    audio: None = None
    function_call: None = None


class ToolMessage(_Strict, kw_only=True, tag_field="role", tag="tool"):
    """What a tool answered."""

    content: TextContent
    tool_call_id: str


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class FunctionSpec(_Strict, kw_only=True):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(_Strict, kw_only=True, tag_field="type", tag="function"):
    """A tool that the model may use."""

    function: FunctionSpec


class FunctionChoice(_Strict, kw_only=True):
    """The name of the function to call."""

    name: FunctionName


class ToolChoice(_Strict, kw_only=True, tag_field="type", tag="function"):
    """Makes the model call one function; it must be among `tools`."""

    function: FunctionChoice


class TextFormat(_Strict, kw_only=True, tag_field="type", tag="text"):
    """Free text."""


class JsonObjectFormat(_Strict, kw_only=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class NamedSchema(_Strict, kw_only=True):
    """A JSON schema that the answer obeys. `strict` has no effect: the schema is always enforced."""

    name: FunctionName
    description: str | None = None
    schema: JsonObject
    strict: bool | None = None


class JsonSchemaFormat(_Strict, kw_only=True, tag_field="type", tag="json_schema"):
    """JSON that obeys a schema."""

    json_schema: NamedSchema


class StreamOptions(_Strict, kw_only=True):
    """`include_obfuscation` may only be false."""

    include_usage: bool | None = None
    include_obfuscation: OnlyFalse | None = None


class GenerationBody(_Strict, kw_only=True):
    """What chat and text completions share: OpenAI's parameters, then llama.cpp's."""

    model: ModelText
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=_INT32)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=_INT64)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=16)] | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Meta(pattern="^[0-9]{1,9}$")], Annotated[float, Meta(ge=-100, le=100)]],
            Meta(max_length=1024),
        ]
        | None
    ) = None
    user: str | None = None

    top_k: Window | None = None
    min_p: Probability | None = None
    typical_p: Probability | None = None
    repeat_penalty: Annotated[float, Meta(ge=0, le=10)] | None = None
    repeat_last_n: Window | None = None
    mirostat: Annotated[int, Meta(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[float, Meta(ge=0, le=100)] | None = None
    mirostat_eta: Probability | None = None
    dry_multiplier: Annotated[float, Meta(ge=0, le=100)] | None = None
    dry_base: Annotated[float, Meta(ge=0, le=100)] | None = None
    dry_allowed_length: Annotated[int, Meta(ge=0, le=_INT32)] | None = None
    dry_penalty_last_n: Window | None = None
    dry_sequence_breakers: (
        Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=16)] | None
    ) = None
    xtc_probability: Probability | None = None
    xtc_threshold: Probability | None = None
    cache_prompt: bool | None = None


class ChatBody(GenerationBody, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=_INT32)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(min_length=1, max_length=256)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    chat_template_kwargs: JsonObject | None = None

    modalities: Annotated[list[Literal["text"]], Meta(min_length=1, max_length=1)] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
            Meta(max_length=16),
        ]
        | None
    ) = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: OnlyFalse | None = None

    audio: None = None
    function_call: None = None
    functions: None = None
    prediction: None = None
    prompt_cache_retention: None = None
    reasoning_effort: None = None
    verbosity: None = None
    web_search_options: None = None


class CompletionBody(GenerationBody, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: Texts
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: OnlyFalse | None = None

    best_of: None = None
    suffix: None = None


class EmbeddingBody(_Strict, kw_only=True):
    """The body of POST /v1/embeddings."""

    model: ModelText
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None

    dimensions: None = None
