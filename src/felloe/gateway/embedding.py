"""The answer to an embedding request, in the number format that the client asked for."""

import base64
import binascii
from array import array
from typing import Any

import msgspec
from msgspec import Struct

from felloe.domain.errors import FelloeError
from felloe.domain.requests import Usage
from felloe.gateway.rules import Call


class _Vector(Struct):
    index: int
    embedding: list[float] | str


class _Answer(Struct):
    data: list[_Vector]


_ANSWERS = msgspec.json.Decoder(_Answer)


def render_embeddings(call: Call, body: bytes, usage: Usage) -> bytes:
    """The JSON body for the client from the JSON body that an engine gave. Raises `upstream_failed`."""
    request = call.requests[0]
    try:
        vectors = sorted(_ANSWERS.decode(body).data, key=lambda vector: vector.index)
        data = [_entry(vector, as_base64=call.base64) for vector in vectors]
    except (ValueError, OverflowError, RecursionError) as error:
        raise FelloeError("upstream_failed", "the embeddings cannot be read") from error
    if [vector.index for vector in vectors] != list(range(len(request.body["input"]))):
        raise FelloeError("upstream_failed", "the answer does not hold one embedding for each input")
    return msgspec.json.encode(
        {
            "object": "list",
            "data": data,
            "model": request.model,
            "usage": {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt},
        }
    )


def _entry(vector: _Vector, *, as_base64: bool) -> dict[str, Any]:
    value = vector.embedding
    if as_base64 and not isinstance(value, str):
        value = base64.b64encode(_floats(value).tobytes()).decode()
    elif not as_base64 and isinstance(value, str):
        value = _floats_from(value)
    return {"object": "embedding", "index": vector.index, "embedding": value}


def _floats(values: list[float]) -> "array[float]":
    """32-bit floats, little-endian, as OpenAI encodes them."""
    return _little_endian(array("f", values))


def _floats_from(text: str) -> list[float]:
    values = array("f")
    try:
        values.frombytes(base64.b64decode(text, validate=True))
    except binascii.Error as error:
        raise ValueError("not base64") from error
    return _little_endian(values).tolist()


def _little_endian(values: "array[float]") -> "array[float]":
    if array("H", [1]).tobytes() == b"\x00\x01":
        values.byteswap()
    return values
