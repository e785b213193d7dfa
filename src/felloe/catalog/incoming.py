"""One file on its way into the store: written in order, resumable after a kill at any byte and after a full disk.

Two files share a name made from the key: `<name>.data` holds the content, `<name>.journal` says which chunks are
whole (`journal.py`). This writer fills the chunks from the first on and goes on at the first gap; `gathering.py` takes
them in any order. Either goes on with what the other left.
"""

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from felloe.catalog.journal import Journal
from felloe.catalog.promises import Promised
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelDigest
from felloe.domain.manifest import CHUNK_BYTES, MOST_FILE_BYTES
from felloe.host.files import as_disk_error

DATA_SUFFIX = ".data"
_BUFFER_BYTES = 2**20
_SYNC_BYTES = 64 * 2**20


class Blob(NamedTuple):
    """One file's whole content in the store; `size` in bytes, `chunks` the raw BLAKE3 of each 4 MiB of it."""

    digest: ModelDigest
    size: int
    path: Path
    chunks: tuple[bytes, ...]


class Incoming(Promised):
    """A blob on its way in. Made by `Blobs.receive`; one writer a key, one call at a time.

    A call that was cancelled may still do its work; only `close` may follow it.
    """

    def __init__(self, file: "IncomingFile", keep: Callable[[Blob], Blob], closed: Callable[[], object]) -> None:
        super().__init__()
        self._file = file
        self._keep = keep
        self._closed = closed
        self._buffer = bytearray()

    @property
    def length(self) -> int:
        """Bytes that are here and need not be sent again: where a source goes on."""
        return self._file.length + len(self._buffer)

    async def write(self, data: bytes) -> None:
        """Append. Raises `disk_full` and keeps what is there; raises `bad_model_file` beyond the announced size and
        drops it.
        """
        if not self._buffer and len(data) >= _BUFFER_BYTES:
            await asyncio.to_thread(self._file.append, data)
            return
        self._buffer += data
        if len(self._buffer) >= _BUFFER_BYTES:
            await self._flush()

    async def start_anew(self) -> None:
        """The source changed: drop what is there."""
        self._buffer.clear()
        await asyncio.to_thread(self._file.start_anew)

    async def finish(self) -> Blob:
        """The whole file as a blob of the store.

        Raises `bad_model_file` on a wrong size or hash and drops what came; raises `disk_full` and keeps it.
        """
        await self._flush()
        return await asyncio.to_thread(self._finish)

    async def close(self) -> None:
        """Keep what is there for a later pull; does nothing once finished."""
        try:
            # Without room, or with too much, what is on the disk stays or went; the rest comes again.
            with contextlib.suppress(FelloeError):
                await self._flush()
        finally:
            # Not to be cancelled: the key has no other writer until the files are let go.
            await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(self._close)))

    async def _flush(self) -> None:
        data, self._buffer = bytes(self._buffer), bytearray()
        if data:
            await asyncio.to_thread(self._file.append, data)

    def _close(self) -> None:
        self._file.close()
        self._closed()

    def _finish(self) -> Blob:
        with self._file.lock:
            blob = self._keep(self._file.complete())
            self._file.close()
            return blob


class IncomingFile:
    """The two files of one key, and the hashes of what is in them. Blocking; safe to close while a call runs.

    `sha256` (64 hex digits) is what the source says of the whole, None where it says nothing: it takes longer to work
    out than all the rest.
    """

    def __init__(self, data: Path, size: int | None, sha256: str | None) -> None:
        self.lock = threading.RLock()
        self.length = 0
        self._path = data
        self._journal = Journal(data)
        self._size = size
        self._expected = None if sha256 is None else sha256.lower()
        self._data = -1
        self._begin()

    def _begin(self) -> None:
        self.length = self._journaled = self._synced = 0
        self._chunks: list[bytes] = []
        self._whole, self._chunk = blake3(), blake3()
        self._sha256 = None if self._expected is None else hashlib.sha256()

    def open(self, stopped: Callable[[], bool]) -> None:
        """Take over what is whole of an earlier pull, chunk by chunk; what is not is cut off, unless `stopped` says to
        leave it all. Raises `disk_full`.
        """
        with self.lock, self._explained():
            self._data = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if self._journal.open(self._size):
                self._take_over(stopped)
            else:
                os.ftruncate(self._data, 0)
            if stopped():
                return
            # Of a file whose size is known every byte is written anew, so chunks behind a gap may stay for `gathering`.
            end = self.length if self._size is None else min(self._size, os.fstat(self._data).st_size)
            os.ftruncate(self._data, end)
            self._journaled, self._synced = len(self._chunks), self.length

    def append(self, data: bytes) -> None:
        """Write and hash; each chunk that is whole gets its slot."""
        with self.lock:
            if self._data < 0:
                return
            most = MOST_FILE_BYTES if self._size is None else self._size
            if self.length + len(data) > most:
                self.start_anew()
                raise FelloeError("bad_model_file", f"the source sent more than the {most} bytes of the file")
            rest = memoryview(data)
            with self._explained():
                while rest:
                    done = os.pwrite(self._data, rest[: CHUNK_BYTES - self.length % CHUNK_BYTES], self.length)
                    self._count(rest[:done])
                    rest = rest[done:]
                    self._write_slots()
                if self.length - self._synced >= _SYNC_BYTES:
                    self._sync()

    def start_anew(self) -> None:
        """Forget everything but the size."""
        with self.lock, self._explained():
            self._begin()
            os.ftruncate(self._data, 0)
            self._journal.begin(self._size)

    def complete(self) -> Blob:
        """Check the whole and make it durable; the content keeps its name. Drops it when it is not what was to come."""
        with self.lock:
            why = ""
            if self._size is not None and self.length != self._size:
                why = f"the source sent {self.length} bytes of {self._size}"
            elif self._sha256 is not None and self._sha256.hexdigest() != self._expected:
                why = f"what the source sent has the SHA-256 {self._sha256.hexdigest()} instead of {self._expected}"
            if why:
                self.start_anew()
                raise FelloeError("bad_model_file", why)
            with self._explained():
                self._sync()
            has_open_end = self._size is None and self.length % CHUNK_BYTES
            chunks = (*self._chunks, self._chunk.digest()) if has_open_end else tuple(self._chunks)
            return Blob(ModelDigest(f"blake3:{self._whole.hexdigest()}"), self.length, self._path, chunks)

    def close(self) -> None:
        """Let go of the files; nothing happens the second time."""
        with self.lock:
            if self._data >= 0:
                with contextlib.suppress(OSError):  # without room, the last chunks come again
                    self._write_slots()
                os.close(self._data)
            self._data = -1
            self._journal.close()

    def drop(self) -> None:
        """Delete the journal, and the content if it is still here."""
        self._journal.drop()
        self._path.unlink(missing_ok=True)

    def _take_over(self, stopped: Callable[[], bool]) -> None:
        end = os.fstat(self._data).st_size if self._size is None else min(self._size, os.fstat(self._data).st_size)
        while self.length < end and not stopped():
            slot = self._journal.slots(len(self._chunks), 1)
            content = os.pread(self._data, min(CHUNK_BYTES, end - self.length), self.length)
            is_whole = len(content) == CHUNK_BYTES or self.length + len(content) == self._size
            if not is_whole or blake3(content).digest() != slot:
                return
            self._count(memoryview(content))

    def _count(self, data: memoryview) -> None:
        """Note what was written; it lies within one chunk."""
        self._whole.update(data)
        if self._sha256 is not None:
            self._sha256.update(data)
        self._chunk.update(data)
        self.length += len(data)
        if self.length % CHUNK_BYTES == 0 or self.length == self._size:
            self._seal_chunk()

    def _seal_chunk(self) -> None:
        self._chunks.append(self._chunk.digest())
        self._chunk = blake3()

    def _write_slots(self) -> None:
        slots = b"".join(self._chunks[self._journaled :])
        if not slots:
            return
        self._journal.fill(self._journaled, slots)
        self._journaled = len(self._chunks)

    def _sync(self) -> None:
        os.fsync(self._data)
        self._journal.sync()
        self._synced = self.length

    @contextlib.contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise as_disk_error(error, self._path) from error
