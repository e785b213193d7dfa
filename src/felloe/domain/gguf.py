"""What a GGUF file says about its model, read from the front of the file in bounded time and memory.

A file from anywhere is hostile until read: every count, length, offset and type is checked before it is used, token
lists are stepped over, and only the few values that Felloe needs are held.
Source: the GGUF specification (docs/gguf.md of github.com/ggml-org/ggml), versions 2 and 3.
"""

import re
from collections.abc import Callable
from typing import Literal, NoReturn

from msgspec import Struct

from felloe.domain.ggml_types import FILE_TYPES
from felloe.domain.gguf_reader import Cursor, Listed, Tensor, Value, read_metadata, read_tensor, shown

Pooling = Literal["none", "mean", "cls", "last", "rank"]

MAX_HEADER_BYTES = 64 * 2**20
_MAX_METADATA = 4096
_MAX_TENSORS = 2**16
_MAX_LAYERS = 4096
_MAX_ALIGNMENT = 2**16
_MAX_COUNT = 2**31 - 1
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
    fields, tensors, data_offset = _read(Cursor(read, file, max_header_bytes), file_size)
    return _describe(fields, tensors, data_offset)


def read_part(
    read: Callable[[int], bytes],
    *,
    file: str,
    file_size: int | None = None,
    max_header_bytes: int = MAX_HEADER_BYTES,
) -> GgufPart:
    """Parse a further part of a sharded model, as `read_header` parses the first."""
    fields, tensors, _ = _read(Cursor(read, file, max_header_bytes), file_size)
    return GgufPart(
        split_number=fields.integer("split.no"),
        split_count=fields.integer("split.count"),
        split_tensors=fields.integer("split.tensors.count"),
        tensor_count=len(tensors),
        parameters=sum(tensor.elements for tensor in tensors),
        tensor_bytes=sum(tensor.size for tensor in tensors),
    )


def _read(cursor: Cursor, file_size: int | None) -> "tuple[_Fields, list[Tensor], int]":
    """The checked metadata and tensors, and where the tensors' data begins."""
    if cursor.take(4, "magic") != b"GGUF":
        cursor.fail("magic", "is not GGUF")
    version = cursor.unsigned("<I", "version")
    if version not in (2, 3):
        why = "the file is big-endian" if version in (2 << 24, 3 << 24) else f"{version} is not 2 or 3"
        cursor.fail("version", why)
    tensor_count = cursor.count("tensor count", _MAX_TENSORS)
    metadata = read_metadata(cursor, cursor.count("metadata count", _MAX_METADATA))
    fields = _Fields(metadata, cursor)
    tensors = [read_tensor(cursor) for _ in range(tensor_count)]
    alignment = fields.integer("general.alignment", 32, _MAX_ALIGNMENT)
    if alignment < 1 or alignment & (alignment - 1):
        cursor.fail("general.alignment", f"{alignment} is no power of two")
    data_offset = -(-cursor.position // alignment) * alignment
    _check_layout(cursor, tensors, alignment, None if file_size is None else file_size - data_offset)
    return fields, tensors, data_offset


def _check_layout(cursor: Cursor, tensors: list[Tensor], alignment: int, data_size: int | None) -> None:
    """Every tensor has its own name and its own aligned place inside the file."""
    names: set[str] = set()
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        field = f"tensor {shown(tensor.name)}"
        if tensor.name in names:
            cursor.fail(field, "appears twice")
        names.add(tensor.name)
        if tensor.offset % alignment:
            cursor.fail(field, f"its offset {tensor.offset} is no multiple of {alignment}")
        if tensor.offset < end:
            cursor.fail(field, "it overlaps another tensor")
        end = tensor.offset + tensor.size
        if data_size is not None and end > data_size:
            cursor.fail(field, f"it ends {end - data_size} bytes beyond the end of the file")


class _Fields:
    """Metadata by key and expected type."""

    def __init__(self, metadata: dict[str, Value], cursor: Cursor) -> None:
        self._metadata = metadata
        self._cursor = cursor

    def __contains__(self, key: str) -> bool:
        return key in self._metadata

    def text(self, key: str, default: str = "") -> str:
        value = self._metadata.get(key, default)
        if not isinstance(value, str):
            self.fail(key, "is not a string")
        return value

    def integer(self, key: str, default: int = 0, limit: int = _MAX_COUNT) -> int:
        return self._checked(key, self._metadata.get(key, default), limit)

    def per_layer(self, key: str, layers: int, default: int) -> tuple[int, ...]:
        """One number for all layers or one for each."""
        value = self._metadata.get(key, default)
        if not isinstance(value, Listed):
            return (self._checked(key, value, _MAX_COUNT),) * layers
        if value.length != layers or value.numbers is None:
            self.fail(key, f"has {value.length} entries for {layers} layers")
        return tuple(self._checked(key, number, _MAX_COUNT) for number in value.numbers)

    def length(self, key: str) -> int:
        value = self._metadata.get(key)
        return value.length if isinstance(value, Listed) else 0

    def fail(self, key: str, why: str) -> NoReturn:
        self._cursor.fail(key, why)

    def _checked(self, key: str, value: Value, limit: int) -> int:
        if not isinstance(value, int) or not 0 <= value <= limit:
            shown = value if isinstance(value, int | float) else "the value"
            self.fail(key, f"{shown} is no whole number up to {limit}")
        return value


def _describe(fields: _Fields, tensors: list[Tensor], data_offset: int) -> GgufHeader:
    architecture = fields.text("general.architecture")
    if not _ARCHITECTURE.fullmatch(architecture):
        fields.fail("general.architecture", "is missing" if not architecture else f"{shown(architecture)} is no name")
    layers = fields.integer(f"{architecture}.block_count", limit=_MAX_LAYERS)
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


def _quantisation(fields: _Fields, tensors: list[Tensor]) -> str:
    """The file's own word for it, or the type that holds most of its bytes."""
    named = FILE_TYPES.get(fields.integer("general.file_type", _MAX_COUNT))
    if named:
        return named
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.size
    return max(sizes, key=lambda kind: sizes[kind], default="")


def _vocabulary(fields: _Fields, tensors: list[Tensor]) -> int:
    for tensor in tensors:
        if tensor.name == "token_embd.weight" and len(tensor.dimensions) == 2:
            return tensor.dimensions[1]
    return fields.length("tokenizer.ggml.tokens")


def _pooling(fields: _Fields, architecture: str) -> Pooling | None:
    key = f"{architecture}.pooling_type"
    if key not in fields:
        return None
    return _POOLING[fields.integer(key, limit=len(_POOLING) - 1)]
