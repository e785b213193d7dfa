"""Reads a whole file again and tells which of its chunks are not what they should be."""

from collections.abc import Callable
from os import fstat, pread
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from felloe.catalog.journal import HASH_BYTES
from felloe.domain.manifest import CHUNK_BYTES


class Checked(NamedTuple):
    """What reading every byte of a blob showed. `bad_chunks` counts from 0; empty with `is_whole` False: all is."""

    is_whole: bool
    bad_chunks: tuple[int, ...]


class Read(NamedTuple):
    """The raw BLAKE3 of each chunk, that of the whole in hex digits, and the chunks that the disk did not give."""

    chunks: tuple[bytes, ...]
    hash: str
    failed: frozenset[int]
    is_unreadable: bool = False


def read_all(path: Path, progress: Callable[[int], None], stopped: Callable[[], bool]) -> Read | None:
    """Read every byte; `progress` gets the bytes read with each chunk. None when stopped or when it is gone."""
    try:
        stream = path.open("rb", buffering=0)
    except FileNotFoundError:
        return None
    except OSError:
        return Read((), "", frozenset(), is_unreadable=True)
    chunks, whole, failed = list[bytes](), blake3(), set[int]()
    with stream:
        while not stopped():
            content, is_read = _read_chunk(stream.fileno(), len(chunks))
            if not content:
                return Read(tuple(chunks), whole.hexdigest(), frozenset(failed))
            if not is_read:
                failed.add(len(chunks))
            chunks.append(blake3(content).digest())
            whole.update(content)
            progress(len(content))
    return None


def differing(read: Read, expected: bytes) -> tuple[int, ...]:
    """The chunks that are not as `expected` (raw hashes in order), the missing ones included."""
    hashes = [expected[at : at + HASH_BYTES] for at in range(0, len(expected), HASH_BYTES)]
    return tuple(
        number
        for number in range(max(len(read.chunks), len(hashes)))
        if number in read.failed or read.chunks[number : number + 1] != tuple(hashes[number : number + 1])
    )


def _read_chunk(descriptor: int, number: int) -> tuple[bytes, bool]:
    """One chunk of a file, and whether the disk gave it; zeros stand for what it did not give."""
    try:
        return pread(descriptor, CHUNK_BYTES, number * CHUNK_BYTES), True
    except OSError:
        rest = fstat(descriptor).st_size - number * CHUNK_BYTES
        return bytes(max(0, min(CHUNK_BYTES, rest))), False
