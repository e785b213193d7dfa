"""Which chunks of a file that comes in are whole: a fixed head, then one 32-byte slot for each 4 MiB chunk.

A slot holds the chunk's BLAKE3, or zeros while the chunk is not whole. It is a claim: whoever goes on with the file
reads the chunk and believes the slot only when the two agree, so neither torn writes nor a journal that is ahead of the
data can do harm. Slots may be filled in any order.
"""

import os
import struct
from pathlib import Path

from felloe.domain.manifest import CHUNK_BYTES

HASH_BYTES = 32
JOURNAL_SUFFIX = ".journal"
_HEAD = struct.Struct("<8sIQ44x")  # magic and version, bytes a chunk, bytes in all
_MAGIC = b"fel-in\x00\x01"
_UNKNOWN_SIZE = 2**64 - 1


class Journal:
    """The journal beside the content at `data`. Blocking; all raise `OSError`."""

    def __init__(self, data: Path) -> None:
        self._path = data.with_suffix(JOURNAL_SUFFIX)
        self._descriptor = -1

    def open(self, size: int | None) -> bool:
        """Open or make it; whether it belongs to a file of `size` bytes (None: not known). It is empty when not.

        A size that comes to be known is written down.
        """
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        written = self._size()
        if written is None or written not in (_UNKNOWN_SIZE, _stored(size)):
            self.begin(size)
            return False
        if written != _stored(size):
            self._write_head(size)
        return True

    def begin(self, size: int | None) -> None:
        """Forget all chunks."""
        os.ftruncate(self._descriptor, 0)
        self._write_head(size)

    def slots(self, first: int, count: int) -> bytes:
        """The slots of `count` chunks from `first` on, one behind the other; shorter where none was written yet."""
        return os.pread(self._descriptor, HASH_BYTES * count, _HEAD.size + HASH_BYTES * first)

    def fill(self, first: int, slots: bytes) -> None:
        """Write the slots of chunks from `first` on."""
        _write_all(self._descriptor, slots, _HEAD.size + HASH_BYTES * first)

    def sync(self) -> None:
        """Make it durable."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Let go of the file; nothing happens the second time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def drop(self) -> None:
        """Delete it."""
        self._path.unlink(missing_ok=True)

    def _size(self) -> int | None:
        head = os.pread(self._descriptor, _HEAD.size, 0)
        if len(head) < _HEAD.size:
            return None
        magic, chunk_bytes, size = _HEAD.unpack(head)
        return size if magic == _MAGIC and chunk_bytes == CHUNK_BYTES else None

    def _write_head(self, size: int | None) -> None:
        _write_all(self._descriptor, _HEAD.pack(_MAGIC, CHUNK_BYTES, _stored(size)), 0)


def _stored(size: int | None) -> int:
    return _UNKNOWN_SIZE if size is None else size


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[done:], offset + done
