"""Embeddings from a llama.cpp engine that was loaded with them."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from felloe.domain.errors import FelloeError
from felloe.domain.ports import Deliver
from felloe.domain.requests import Done, InferenceRequest, Piece, Usage
from felloe.engines import llama_api
from felloe.engines.http_client import HttpClient
from felloe.engines.rendering import embedding_answer

_INPUTS = 2048
TokenIds = Annotated[list[Annotated[int, Meta(ge=0, le=2**31 - 1)]], Meta(min_length=1)]


class _EmbeddingBody(Struct, frozen=True, forbid_unknown_fields=True):
    input: str | Annotated[list[Any], Meta(min_length=1, max_length=_INPUTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class _Vector(Struct):
    index: int
    embedding: Raw


class _Usage(Struct):
    prompt_tokens: int = 0


class _Answer(Struct):
    data: list[_Vector]
    usage: _Usage = msgspec.field(default_factory=_Usage)


async def embed(client: HttpClient, request: InferenceRequest, deliver: Deliver, seconds: float) -> Done:
    """Deliver one `Piece` with the whole JSON body."""
    try:
        body = msgspec.convert(dict(request.body), _EmbeddingBody)
    except msgspec.ValidationError as error:
        raise FelloeError("invalid_type", str(error)[:200], param="input") from error
    if body.dimensions is not None:
        # Cutting a vector is only sound for models that were trained for it, and a model file does not tell.
        raise FelloeError("unsupported_parameter", "vectors are given whole", param="dimensions")
    fields = {"input": _checked_input(body.input), "encoding_format": body.encoding_format}
    try:
        answer = msgspec.json.decode(await llama_api.call(client, "/v1/embeddings", fields, seconds), type=_Answer)
    except FelloeError as error:
        raise FelloeError(error.code, error.detail, param="input") from error
    usage = Usage(prompt=answer.usage.prompt_tokens)
    vectors = [each.embedding for each in sorted(answer.data, key=lambda each: each.index)]
    behind = deliver(Piece(1, (), embedding_answer(request, vectors, usage)))
    if behind is not None:
        await behind
    return Done(usage, "stop")


def _checked_input(value: str | list[Any]) -> str | list[Any]:
    """A text, a list of texts, a list of ids, or a list of lists of ids."""
    if isinstance(value, str):
        return value
    for shape in (list[str], TokenIds, list[TokenIds]):
        try:
            return msgspec.convert(value, shape)
        except msgspec.ValidationError:
            continue
    raise FelloeError("invalid_type", "the input is a text, a list of texts, or token ids", param="input")
