"""The front of a GGUF file, checked as a whole: metadata by key and expected type, and where each tensor lies."""

from collections.abc import Callable
from typing import NamedTuple, NoReturn

from felloe.domain.gguf_reader import Cursor, Listed, Tensor, Value, read_metadata, read_tensor, shown

MAX_HEADER_BYTES = 64 * 2**20
MAX_COUNT = 2**31 - 1
_MAX_METADATA = 4096
_MAX_TENSORS = 2**16
_MAX_ALIGNMENT = 2**16


class Front(NamedTuple):
    """What stands before the first tensor's data, and the offset at which that begins."""

    fields: "Fields"
    tensors: list[Tensor]
    data_offset: int


class Fields:
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

    def integer(self, key: str, default: int = 0, limit: int = MAX_COUNT) -> int:
        return self._checked(key, self._metadata.get(key, default), limit)

    def per_layer(self, key: str, layers: int, default: int) -> tuple[int, ...]:
        """One number for all layers or one for each."""
        value = self._metadata.get(key, default)
        if not isinstance(value, Listed):
            return (self._checked(key, value, MAX_COUNT),) * layers
        if value.length != layers or value.numbers is None:
            self.fail(key, f"has {value.length} entries for {layers} layers")
        return tuple(self._checked(key, number, MAX_COUNT) for number in value.numbers)

    def length(self, key: str) -> int:
        value = self._metadata.get(key)
        return value.length if isinstance(value, Listed) else 0

    def is_list(self, key: str) -> bool:
        return isinstance(self._metadata.get(key), Listed)

    def fail(self, key: str, why: str) -> NoReturn:
        self._cursor.fail(key, why)

    def _checked(self, key: str, value: Value, limit: int) -> int:
        if not isinstance(value, int) or not 0 <= value <= limit:
            shown = value if isinstance(value, int | float) else "the value"
            self.fail(key, f"{shown} is no whole number up to {limit}")
        return value


def read_front(
    read: Callable[[int], bytes],
    *,
    file: str,
    file_size: int | None = None,
    max_header_bytes: int = MAX_HEADER_BYTES,
) -> Front:
    """Parse what `read(n)` gives (at most n bytes, none at the end) up to the first tensor's data.

    `file` names the file in errors; with `file_size` in bytes, every tensor must lie inside the file.
    Raises `bad_model_file` as `<file>: <field>: <why>`; whatever `read` raises passes through.
    """
    cursor = Cursor(read, file, max_header_bytes)
    if cursor.take(4, "magic") != b"GGUF":
        cursor.fail("magic", "is not GGUF")
    version = cursor.unsigned("<I", "version")
    if version not in (2, 3):
        why = "the file is big-endian" if version in (2 << 24, 3 << 24) else f"{version} is not 2 or 3"
        cursor.fail("version", why)
    tensor_count = cursor.count("tensor count", _MAX_TENSORS)
    metadata = read_metadata(cursor, cursor.count("metadata count", _MAX_METADATA))
    fields = Fields(metadata, cursor)
    tensors = [read_tensor(cursor) for _ in range(tensor_count)]
    alignment = fields.integer("general.alignment", 32, _MAX_ALIGNMENT)
    if alignment < 1 or alignment & (alignment - 1):
        cursor.fail("general.alignment", f"{alignment} is no power of two")
    data_offset = -(-cursor.position // alignment) * alignment
    _check_places(cursor, tensors, alignment, None if file_size is None else file_size - data_offset)
    return Front(fields, tensors, data_offset)


def _check_places(cursor: Cursor, tensors: list[Tensor], alignment: int, data_size: int | None) -> None:
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
