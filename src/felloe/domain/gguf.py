"""What a GGUF file says about its model, read from the front of the file in bounded time and memory.

A file from anywhere is hostile until read: every count, length, offset and type is checked before it is used, token
lists are stepped over, and only the few values that Felloe needs are held.
Source: the GGUF specification (docs/gguf.md of github.com/ggml-org/ggml), versions 2 and 3.
"""

import re
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from felloe.domain.ggml_types import FILE_TYPES
from felloe.domain.gguf_fields import MAX_COUNT, MAX_HEADER_BYTES, Fields, Front, read_front
from felloe.domain.gguf_reader import Tensor, shown

Pooling = Literal["none", "mean", "cls", "last", "rank"]

MAX_LAYERS = 4096
_POOLING: tuple[Pooling, ...] = ("none", "mean", "cls", "last", "rank")
_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class GgufHeader(Struct, frozen=True, kw_only=True):
    """One model as its file describes it; sizes in bytes, lengths in tokens or elements, 0 where the file is silent.

    `kind` is `general.type` (`model`, `adapter`, `mmproj`, ...). `kv_heads` and `feed_forward` have one entry a layer.
    `tokenizer` is empty when the file has none. `data_offset` is where the tensors begin. `split_number` counts the
    parts of a sharded model from 0, `split_count` says how many there are, `split_tensors` how many tensors they hold.
    """

    architecture: str
    kind: str
    name: str
    quantisation: str
    context: int
    block_count: int
    embedding_length: int
    heads: int
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    feed_forward: tuple[int, ...]
    vocabulary: int
    tokenizer: str
    chat_template: str | None
    pooling: Pooling | None
    split_number: int
    split_count: int
    split_tensors: int
    tensor_count: int
    parameters: int
    tensor_bytes: int
    data_offset: int


class GgufPart(Struct, frozen=True, kw_only=True):
    """A further part of a sharded model: only the first part says what the model is. Fields as in `GgufHeader`."""

    split_number: int
    split_count: int
    split_tensors: int
    tensor_count: int
    parameters: int
    tensor_bytes: int


def read_header(
    read: Callable[[int], bytes],
    *,
    file: str,
    file_size: int | None = None,
    max_header_bytes: int = MAX_HEADER_BYTES,
) -> GgufHeader:
    """Parse what `read(n)` gives (at most n bytes, none at the end) up to the first tensor's data.

    `file` names the file in errors; with `file_size` in bytes, every tensor must lie inside the file.
    Raises `bad_model_file` as `<file>: <field>: <why>`; whatever `read` raises passes through.
    """
    return describe(read_front(read, file=file, file_size=file_size, max_header_bytes=max_header_bytes))


def read_part(
    read: Callable[[int], bytes],
    *,
    file: str,
    file_size: int | None = None,
    max_header_bytes: int = MAX_HEADER_BYTES,
) -> GgufPart:
    """Parse a further part of a sharded model, as `read_header` parses the first."""
    fields, tensors, _ = read_front(read, file=file, file_size=file_size, max_header_bytes=max_header_bytes)
    return GgufPart(
        split_number=fields.integer("split.no"),
        split_count=fields.integer("split.count"),
        split_tensors=fields.integer("split.tensors.count"),
        tensor_count=len(tensors),
        parameters=sum(tensor.elements for tensor in tensors),
        tensor_bytes=sum(tensor.size for tensor in tensors),
    )


def describe(front: Front) -> GgufHeader:
    """The model that a checked front tells of; raises `bad_model_file`."""
    fields, tensors, data_offset = front
    architecture = fields.text("general.architecture")
    if not _ARCHITECTURE.fullmatch(architecture):
        fields.fail("general.architecture", "is missing" if not architecture else f"{shown(architecture)} is no name")
    layers = fields.integer(f"{architecture}.block_count", limit=MAX_LAYERS)
    width = fields.integer(f"{architecture}.embedding_length")
    heads = max(fields.per_layer(f"{architecture}.attention.head_count", layers, 0), default=0)
    head_width = width // heads if heads else 0
    return GgufHeader(
        architecture=architecture,
        kind=fields.text("general.type", "model"),
        name=fields.text("general.name"),
        quantisation=_quantisation(fields, tensors),
        context=fields.integer(f"{architecture}.context_length"),
        block_count=layers,
        embedding_length=width,
        heads=heads,
        kv_heads=fields.per_layer(f"{architecture}.attention.head_count_kv", layers, heads),
        key_length=fields.integer(f"{architecture}.attention.key_length", head_width),
        value_length=fields.integer(f"{architecture}.attention.value_length", head_width),
        feed_forward=fields.per_layer(f"{architecture}.feed_forward_length", layers, 0),
        vocabulary=_vocabulary(fields, tensors),
        tokenizer=fields.text("tokenizer.ggml.model"),
        chat_template=fields.text("tokenizer.chat_template") or None,
        pooling=_pooling(fields, architecture),
        split_number=fields.integer("split.no"),
        split_count=fields.integer("split.count"),
        split_tensors=fields.integer("split.tensors.count"),
        tensor_count=len(tensors),
        parameters=sum(tensor.elements for tensor in tensors),
        tensor_bytes=sum(tensor.size for tensor in tensors),
        data_offset=data_offset,
    )


def _quantisation(fields: Fields, tensors: list[Tensor]) -> str:
    """The file's own word for it, or the type that holds most of its bytes."""
    named = FILE_TYPES.get(fields.integer("general.file_type", MAX_COUNT))
    if named:
        return named
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.size
    return max(sizes, key=lambda kind: sizes[kind], default="")


def _vocabulary(fields: Fields, tensors: list[Tensor]) -> int:
    for tensor in tensors:
        if tensor.name == "token_embd.weight" and len(tensor.dimensions) == 2:
            return tensor.dimensions[1]
    return fields.length("tokenizer.ggml.tokens")


def _pooling(fields: Fields, architecture: str) -> Pooling | None:
    key = f"{architecture}.pooling_type"
    if key not in fields:
        return None
    return _POOLING[fields.integer(key, limit=len(_POOLING) - 1)]
