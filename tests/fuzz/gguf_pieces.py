"""Takes a GGUF file's header apart and puts it together again, so that one thing in it can be changed."""

import struct
from typing import NamedTuple

from gguf_bytes import ARRAY, STRING, text

_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class PlacedTensor(NamedTuple):
    """One description; `kind` is the number of its type, `offset` counts bytes from the beginning of the data."""

    name: bytes
    shape: list[int]
    kind: int
    offset: int


class Pieces(NamedTuple):
    """`pairs` are key, type and value as they lie in the file; `header_bytes` is where the descriptions end."""

    version: int
    pairs: list[tuple[bytes, int, bytes]]
    tensors: list[PlacedTensor]
    header_bytes: int


class _Walk:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 4

    def number(self, layout: str) -> int:
        (value,) = struct.unpack_from(layout, self._data, self.at)
        self.at += struct.calcsize(layout)
        return int(value)

    def bytes(self, size: int) -> bytes:
        if size > len(self._data) - self.at:
            raise ValueError("the file ends")
        self.at += size
        return self._data[self.at - size : self.at]

    def value(self, kind: int) -> bytes:
        begin = self.at
        if kind == STRING:
            self.bytes(self.number("<Q"))
        elif kind == ARRAY:
            inner, count = self.number("<I"), self.number("<Q")
            if inner == ARRAY:
                raise ValueError("an array in an array")
            for _ in range(count):
                self.value(inner)
        else:
            self.bytes(_WIDTHS[kind])
        return self._data[begin : self.at]


def split(data: bytes, most: int = 10_000) -> Pieces:
    """The pieces of a header. Raises ValueError, KeyError or struct.error where it is none, or has more than `most`."""
    walk = _Walk(data)
    version, tensors, pairs = walk.number("<I"), walk.number("<Q"), walk.number("<Q")
    if max(tensors, pairs) > most:
        raise ValueError("too many")
    found: list[tuple[bytes, int, bytes]] = []
    for _ in range(pairs):
        key, kind = walk.bytes(walk.number("<Q")), walk.number("<I")
        found.append((key, kind, walk.value(kind)))
    placed: list[PlacedTensor] = []
    for _ in range(tensors):
        name = walk.bytes(walk.number("<Q"))
        shape = [walk.number("<Q") for _ in range(min(walk.number("<I"), 8))]
        placed.append(PlacedTensor(name, shape, walk.number("<I"), walk.number("<Q")))
    return Pieces(version, found, placed, walk.at)


def join(pieces: Pieces, *, tensor_count: int | None = None, pair_count: int | None = None) -> bytes:
    """The header again, not filled up to where the data begins. Numbers that are too large lose their upper bits."""
    counts = (
        len(pieces.tensors) if tensor_count is None else tensor_count,
        len(pieces.pairs) if pair_count is None else pair_count,
    )
    data = [b"GGUF", struct.pack("<IQQ", pieces.version % 2**32, *(count % 2**64 for count in counts))]
    for key, kind, value in pieces.pairs:
        data += [text(key), struct.pack("<I", kind % 2**32), value]
    for tensor in pieces.tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *(length % 2**64 for length in tensor.shape))
        data += [text(tensor.name), shape, struct.pack("<IQ", tensor.kind % 2**32, tensor.offset % 2**64)]
    return b"".join(data)
