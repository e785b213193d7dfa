"""Reads GGUF's building blocks (numbers, strings, arrays, tensor descriptions) from a hostile file, forward only.

Source: the GGUF specification (docs/gguf.md of github.com/ggml-org/ggml), versions 2 and 3.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from felloe.domain.errors import FelloeError
from felloe.domain.ggml_types import TENSOR_TYPES

MAX_SIZE = 2**63 - 1
_CHUNK = 2**16
_MAX_KEY_BYTES = 1024
_MAX_TENSOR_NAME_BYTES = 63
_MAX_DIMENSIONS = 4
_MAX_LISTED_STRINGS = 2**21
_MAX_HELD_BYTES = 4 * 2**20
_MAX_HELD_NUMBERS = 4096

_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
_BOOL = 7
_HELD_STRINGS = {
    "general.architecture",
    "general.name",
    "general.type",
    "tokenizer.ggml.model",
    "tokenizer.chat_template",
}
_HELD_ARRAYS = (
    ".attention.head_count",
    ".attention.head_count_kv",
    ".attention.sliding_window_pattern",
    ".feed_forward_length",
)


class Tensor(NamedTuple):
    name: str
    type: str
    dimensions: tuple[int, ...]
    elements: int
    size: int
    offset: int


class Listed(NamedTuple):
    """An array: its length, and its numbers if they are needed."""

    length: int
    numbers: tuple[int | float, ...] | None


Value = int | float | str | Listed | None


class Cursor:
    """Walks forward through the file, never past the limit, holding one chunk."""

    def __init__(self, read: Callable[[int], bytes], file: str, limit: int) -> None:
        self._read = read
        self._file = file
        self._limit = limit
        self._buffer = b""
        self._at = 0
        self._strings_left = _MAX_LISTED_STRINGS
        self._held_left = _MAX_HELD_BYTES
        self.position = 0

    def fail(self, field: str, why: str) -> NoReturn:
        raise FelloeError("bad_model_file", f"{self._file}: {field}: {why}")

    def take(self, size: int, field: str) -> bytes:
        """The next `size` bytes; callers bound `size`."""
        self._need(size, field)
        data = self._buffer[self._at : self._at + size]
        self._advance(len(data))
        if len(data) == size:
            return data
        pieces = [data]
        missing = size - len(data)
        while missing:
            self._refill(field)
            pieces.append(self._buffer[:missing])
            self._advance(len(pieces[-1]))
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def skip(self, size: int, field: str) -> None:
        self._need(size, field)
        while size > len(self._buffer) - self._at:
            available = len(self._buffer) - self._at
            size -= available
            self._advance(available)
            self._refill(field)
        self._advance(size)

    def hold(self, size: int, field: str) -> bytes:
        """The next `size` bytes, counted against what one header may make us keep."""
        self._held_left -= size
        if self._held_left < 0:
            self.fail(field, f"the metadata to keep is longer than {_MAX_HELD_BYTES} bytes")
        return self.take(size, field)

    def skip_strings(self, count: int, field: str) -> None:
        """Step over a list of strings, such as a vocabulary."""
        self._strings_left -= count
        if self._strings_left < 0:
            self.fail(field, f"the file lists more than {_MAX_LISTED_STRINGS} strings")
        self._need(8 * count, field)
        while count:
            # The loop over what is in the buffer; a string that crosses its end goes the slower way below.
            buffer, at, end = self._buffer, self._at, len(self._buffer)
            while count and end - at >= 8:
                size: int = struct.unpack_from("<Q", buffer, at)[0]
                if size > end - at - 8:
                    break
                at += 8 + size
                count -= 1
            self._advance(at - self._at)
            if count:
                self.skip(self.unsigned("<Q", field), field)
                count -= 1

    def unsigned(self, layout: str, field: str) -> int:
        return struct.unpack(layout, self.take(struct.calcsize(layout), field))[0]

    def count(self, field: str, limit: int) -> int:
        count = self.unsigned("<Q", field)
        if count > limit:
            self.fail(field, f"{count} is more than {limit}")
        return count

    def text(self, field: str, limit: int) -> str:
        data = self.take(self.count(f"{field} length", limit), field)
        return self.decode(data, field)

    def decode(self, data: bytes, field: str) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            self.fail(field, "is not UTF-8")

    def _need(self, size: int, field: str) -> None:
        if self.position + size > self._limit:
            self.fail(field, f"the header would be longer than {self._limit} bytes")

    def _refill(self, field: str) -> None:
        """Fetch the next chunk; the last one is used up."""
        more = self._read(_CHUNK)
        if not more:
            self.fail(field, f"the file ends here, after {self.position} bytes")
        self._buffer = more
        self._at = 0

    def _advance(self, size: int) -> None:
        self._at += size
        self.position += size


def shown(name: str) -> str:
    """A name from the file, safe and short enough for an error."""
    return repr(name if len(name) <= 64 else name[:64] + "…")


def read_metadata(cursor: Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for number in range(count):
        key = cursor.text(f"metadata key {number}", _MAX_KEY_BYTES)
        field = f"metadata {shown(key)}"
        if key in metadata:
            cursor.fail(field, "appears twice")
        metadata[key] = _read_value(cursor, key, cursor.unsigned("<I", field), field)
    return metadata


def _read_value(cursor: Cursor, key: str, kind: int, field: str) -> Value:
    if kind == _STRING:
        size = cursor.unsigned("<Q", field)
        if key in _HELD_STRINGS:
            return cursor.decode(cursor.hold(size, field), field)
        cursor.skip(size, field)
        return None
    if kind == _ARRAY:
        return _read_array(cursor, key, field)
    return _read_number(cursor, kind, field)


def _read_number(cursor: Cursor, kind: int, field: str) -> int | float:
    layout = _NUMBERS.get(kind)
    if layout is None:
        cursor.fail(field, f"value type {kind} is unknown")
    number: int | float = struct.unpack(layout, cursor.take(struct.calcsize(layout), field))[0]
    if kind == _BOOL and number not in (0, 1):
        cursor.fail(field, f"{number} is neither true nor false")
    return number


def _read_array(cursor: Cursor, key: str, field: str) -> Listed:
    kind = cursor.unsigned("<I", field)
    length = cursor.unsigned("<Q", field)
    if kind == _STRING:
        cursor.skip_strings(length, field)
        return Listed(length, None)
    layout = _NUMBERS.get(kind)
    if layout is None:
        why = "arrays in arrays are not supported" if kind == _ARRAY else f"value type {kind} is unknown"
        cursor.fail(field, why)
    size = length * struct.calcsize(layout)
    if length <= _MAX_HELD_NUMBERS and key.endswith(_HELD_ARRAYS):
        numbers = struct.unpack(f"<{length}{layout[1]}", cursor.hold(size, field))
        return Listed(length, numbers)
    cursor.skip(size, field)
    return Listed(length, None)


def read_tensor(cursor: Cursor) -> Tensor:
    name = cursor.text("tensor name", _MAX_TENSOR_NAME_BYTES)
    field = f"tensor {shown(name)}"
    rank = cursor.unsigned("<I", field)
    if rank > _MAX_DIMENSIONS:
        cursor.fail(field, f"{rank} dimensions are more than {_MAX_DIMENSIONS}")
    dimensions = tuple(cursor.unsigned("<Q", field) for _ in range(rank))
    number = cursor.unsigned("<I", field)
    offset = cursor.unsigned("<Q", field)
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        cursor.fail(field, f"tensor type {number} is unknown")
    elements = 1
    for length in dimensions:
        elements *= length
    if not 0 < elements <= MAX_SIZE:
        cursor.fail(field, f"its dimensions {dimensions} hold nothing or too much")
    row = dimensions[0] if dimensions else 1
    if row % kind.block_elements:
        cursor.fail(field, f"rows of {row} elements do not fill blocks of {kind.block_elements} ({kind.name})")
    size = elements // kind.block_elements * kind.block_bytes
    if offset + size > MAX_SIZE:
        cursor.fail(field, "it ends beyond what a file can hold")
    return Tensor(name, kind.name, dimensions, elements, size, offset)
