"""One file on its way into the store whose chunks come in any order, from many nodes.

The two files on the disk are those of `incoming.py`. Every chunk's hash is known from the start, so nothing is written
that does not belong there, and what is whole can be given to others before the rest has come.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Generator
from pathlib import Path

from blake3 import blake3

from felloe.catalog.incoming import Blob
from felloe.catalog.journal import HASH_BYTES, Journal
from felloe.catalog.promises import Promised
from felloe.catalog.threads import to_the_end
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelDigest
from felloe.domain.manifest import CHUNK_BYTES
from felloe.host.files import as_disk_error

_SYNC_BYTES = 64 * 2**20


class Gathering(Promised):
    """A blob that is being gathered. Made by `Blobs.gather`; one a digest.

    A call that was cancelled may still do its work; only `close` may follow it.
    """

    def __init__(self, file: "GatheredFile", keep: Callable[[Blob], Blob], closed: Callable[[], object]) -> None:
        super().__init__()
        self._file = file
        self._keep = keep
        self._closed = closed

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self._file.size

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """The raw BLAKE3 of each chunk."""
        return self._file.hashes

    @property
    def whole(self) -> int:
        """Which chunks are here: bit n stands for chunk n."""
        return self._file.whole

    @property
    def length(self) -> int:
        """Bytes of the chunks that are here."""
        return self._file.length

    async def put(self, chunk: int, data: bytes) -> bool:
        """Write a chunk; False, and nothing is written, when `data` is not that chunk. Raises `disk_full`."""
        return await asyncio.to_thread(self._file.put, chunk, data)

    def read(self, chunk: int) -> bytes | None:
        """A chunk that is here; None when it is not. Blocking."""
        return self._file.read(chunk)

    async def finish(self) -> Blob:
        """The whole file as a blob of the store, once all chunks are here; reads all of it again.

        Raises `bad_model_file` when chunks are missing, `bad_manifest` when digest and chunks name two different files
        (what came is then dropped), `disk_full`.
        """
        return await to_the_end(self._finish)

    async def close(self) -> None:
        """Keep what is there for a later pull; does nothing once finished."""
        # Not to be cancelled: the digest has no other writer until the files are let go.
        await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(self._close)))

    def _finish(self, stopped: Callable[[], bool]) -> Blob:
        with self._file.lock:
            blob = self._keep(self._file.complete(stopped))
            self._file.close()
            return blob

    def _close(self) -> None:
        self._file.close()
        self._closed()


class GatheredFile:
    """The two files of one digest. Blocking; safe to use and to close from several threads."""

    def __init__(self, data: Path, digest: ModelDigest, size: int, hashes: tuple[bytes, ...]) -> None:
        self.lock = threading.RLock()
        self.digest = digest
        self.size = size
        self.hashes = hashes
        self.whole = self.length = 0
        self._path = data
        self._journal = Journal(data)
        self._data = -1
        self._unsynced = 0

    def open(self, stopped: Callable[[], bool]) -> None:
        """Take over every chunk that an earlier pull left whole, unless `stopped` says to leave it. Raises
        `disk_full`.
        """
        with self.lock, self._explained():
            self._data = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if self._journal.open(self.size):
                os.ftruncate(self._data, min(self.size, os.fstat(self._data).st_size))
                self._take_over(stopped)
            else:
                os.ftruncate(self._data, 0)

    def put(self, chunk: int, data: bytes) -> bool:
        """Write a chunk and its slot, unless it is here; False when `data` is another chunk or of another length."""
        if len(data) != self._length_of(chunk) or blake3(data).digest() != self.hashes[chunk]:
            return False
        with self.lock, self._explained():
            if self._data < 0 or self.whole >> chunk & 1:
                return True
            rest, offset = memoryview(data), chunk * CHUNK_BYTES
            while rest:
                done = os.pwrite(self._data, rest, offset)
                rest, offset = rest[done:], offset + done
            self._journal.fill(chunk, self.hashes[chunk])
            self._note(chunk)
            self._unsynced += len(data)
            if self._unsynced >= _SYNC_BYTES:
                self._sync()
        return True

    def read(self, chunk: int) -> bytes | None:
        """A chunk that is here and reads as it should."""
        if not self.whole >> chunk & 1:
            return None
        try:
            # Opened anew: the writer may close the file, and a finished one is not here any more.
            with self._path.open("rb", buffering=0) as stream:
                data = os.pread(stream.fileno(), CHUNK_BYTES, chunk * CHUNK_BYTES)
        except OSError:
            return None
        return data if blake3(data).digest() == self.hashes[chunk] else None

    def complete(self, stopped: Callable[[], bool]) -> Blob:
        """Check the whole and make it durable; the content keeps its name."""
        with self.lock:
            if self.whole != (1 << len(self.hashes)) - 1 or self._data < 0:
                raise FelloeError("bad_model_file", f"{self.length} bytes of {self.size} have come")
            with self._explained():
                self._sync()
                digest = self._digest(stopped)
                if digest != self.digest:
                    self._start_anew()
                    why = f"the chunks of {self.digest} make {digest}: its digest and its chunks are of two files"
                    raise FelloeError("bad_manifest", f"manifest: chunks: {why}")
            return Blob(self.digest, self.size, self._path, self.hashes)

    def close(self) -> None:
        """Let go of the files; nothing happens the second time."""
        with self.lock:
            if self._data >= 0:
                os.close(self._data)
            self._data = -1
            self._journal.close()

    def drop(self) -> None:
        """Delete the journal, and the content if it is still here."""
        self._journal.drop()
        self._path.unlink(missing_ok=True)

    def _take_over(self, stopped: Callable[[], bool]) -> None:
        slots = self._journal.slots(0, len(self.hashes))
        for chunk, expected in enumerate(self.hashes):
            if stopped():
                return
            if slots[HASH_BYTES * chunk : HASH_BYTES * (chunk + 1)] != expected:
                continue
            with contextlib.suppress(OSError):  # what the disk does not give back comes again
                if blake3(os.pread(self._data, CHUNK_BYTES, chunk * CHUNK_BYTES)).digest() == expected:
                    self._note(chunk)

    def _note(self, chunk: int) -> None:
        self.whole |= 1 << chunk
        self.length += self._length_of(chunk)

    def _length_of(self, chunk: int) -> int:
        return min(CHUNK_BYTES, self.size - chunk * CHUNK_BYTES)

    def _digest(self, stopped: Callable[[], bool]) -> str:
        whole = blake3()
        for chunk in range(len(self.hashes)):
            if stopped():
                raise FelloeError("bad_model_file", "the pull was called off")
            whole.update(os.pread(self._data, CHUNK_BYTES, chunk * CHUNK_BYTES))
        return f"blake3:{whole.hexdigest()}"

    def _start_anew(self) -> None:
        os.ftruncate(self._data, 0)
        self._journal.begin(self.size)
        self.whole = self.length = 0

    def _sync(self) -> None:
        os.fsync(self._data)
        self._journal.sync()
        self._unsynced = 0

    @contextlib.contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise as_disk_error(error, self._path) from error
