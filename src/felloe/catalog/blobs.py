"""The content of the store: each file once, under its BLAKE3, however many models name it.

`blobs/<hex>` is a whole file, `blobs/<hex>.chunks` the BLAKE3 of each of its 4 MiB chunks, raw and in order. What is
on its way in lies in `incoming/` and moves here in one step once it is whole; `incoming/<name>.received` then says
which blob came under that key, so that an interrupted pull of many files, or a pull again, fetches nothing twice.
Content that turned out damaged lies in `damaged/` and is never loaded; when the same comes again from other nodes, its
good chunks stay and only the others are fetched.
"""

import contextlib
import re
from collections.abc import Callable, Collection, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from felloe.catalog.checking import Checked, differing, read_all
from felloe.catalog.gathering import GatheredFile, Gathering
from felloe.catalog.incoming import DATA_SUFFIX, Blob, Incoming, IncomingFile
from felloe.catalog.journal import HASH_BYTES, JOURNAL_SUFFIX, Journal
from felloe.catalog.threads import to_the_end
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelDigest
from felloe.domain.manifest import CHUNK_BYTES, MOST_FILE_BYTES, is_digest
from felloe.host.files import as_disk_error, make_private_directory, sync_directory, write_atomic

CHUNKS_SUFFIX = ".chunks"
_MARK_SUFFIX = ".received"
_BLOB_NAME = re.compile(r"[0-9a-f]{64}")
_INCOMING_NAME = re.compile(rf"[0-9a-f]{{64}}(?:{DATA_SUFFIX}|{JOURNAL_SUFFIX}|{_MARK_SUFFIX})")
_UNFINISHED_NAME = re.compile(rf"\.[0-9a-f]{{64}}(?:{CHUNKS_SUFFIX}|{_MARK_SUFFIX})\..+")
_PREFIX = "blake3:"
_MOST_MARK_CHARACTERS = 96
_BLOCK_BYTES = 512


class _Droppable(Protocol):
    def drop(self) -> None: ...


class Blobs:
    """Owns `blobs/`, `incoming/` and `damaged/` of the models folder."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs"
        self._incoming = folder / "incoming"
        self._damaged = folder / "damaged"
        self._opening: set[str] = set()
        self._coming: dict[str, Incoming | Gathering] = {}
        # Came in or were asked for while this process runs: a pull may be about to name them.
        self._fresh: set[ModelDigest] = set()

    def open(self) -> None:
        """Make the folders and clear away what a kill left half-written. Blocking, as all but the coroutines."""
        for folder in (self._blobs, self._incoming, self._damaged):
            make_private_directory(folder)
            for path in folder.iterdir():
                if _UNFINISHED_NAME.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        for chunks in self._blobs.glob(f"*{CHUNKS_SUFFIX}"):
            if not chunks.with_suffix("").exists():
                chunks.unlink(missing_ok=True)

    def received(self, key: str) -> Blob | None:
        """The blob that came in whole under `key`, now or in an earlier pull: nothing need be fetched again."""
        digest, size = _read_mark(self._at(key, _MARK_SUFFIX))
        return self.held(digest, size) if is_digest(digest) else None

    async def receive(self, key: str, size: int | None, sha256: str | None = None) -> Incoming:
        """A writer for the file that `key` stands for (any string: where it comes from, and its entity tag or digest).

        `size` in bytes and `sha256` (64 hex digits), None where the source does not say. Raises `already_pulling` while
        the key has a writer, `bad_model_file` for a size that no file may have, `disk_full`.
        """
        if size is not None and not 0 <= size <= MOST_FILE_BYTES:
            raise FelloeError("bad_model_file", f"the source announces {size} bytes, more than {MOST_FILE_BYTES}")
        data = self._at(key, DATA_SUFFIX)
        with self._only_writer(data.name) as closed:
            file = IncomingFile(data, size, sha256)
            await _opened(file)
            incoming = Incoming(file, partial(self._keep, key, file), closed)
            self._coming[data.name] = incoming
        return incoming

    async def gather(self, digest: ModelDigest, size: int, hashes: tuple[bytes, ...]) -> Gathering:
        """A writer for the file of this digest whose chunks, with these raw hashes, come in any order.

        It begins with what an earlier one left, or with what is good of damaged content. Raises as `receive`.
        """
        if not 0 <= size <= MOST_FILE_BYTES or len(hashes) != -(-size // CHUNK_BYTES):
            raise FelloeError("bad_manifest", f"manifest: chunks: {len(hashes)} cannot be those of {size} bytes")
        data = self._at(digest, DATA_SUFFIX)
        with self._only_writer(data.name) as closed:
            file = GatheredFile(data, digest, size, hashes)
            await to_the_end(lambda _: self._begin_with_damaged(file, data))
            await _opened(file)
            gathering = Gathering(file, partial(self._keep, digest, file), closed)
            self._coming[data.name] = gathering
        return gathering

    def partial(self, digest: ModelDigest) -> Gathering | None:
        """The blob of this digest while its chunks come in."""
        coming = self._coming.get(self._at(digest, DATA_SUFFIX).name)
        return coming if isinstance(coming, Gathering) else None

    def promised_bytes(self) -> int:
        """What is still to come of all that was promised room."""
        return sum(coming.coming for coming in tuple(self._coming.values()))

    def held(self, digest: ModelDigest, size: int) -> Blob | None:
        """The blob of this digest and size, if it is here; a clean-up spares it until `let_go`."""
        blob = self.find(digest)
        if blob is None or blob.size != size:
            return None
        self._fresh.add(digest)
        return blob

    def find(self, digest: ModelDigest) -> Blob | None:
        """The blob of this digest, if it is here in a length that its chunks can have."""
        path = self.path_of(digest)
        try:
            size = path.stat().st_size
            chunks = _with_chunks(path).read_bytes()
        except OSError:
            return None
        if len(chunks) != HASH_BYTES * -(-size // CHUNK_BYTES):
            return None
        parts = tuple(chunks[at : at + HASH_BYTES] for at in range(0, len(chunks), HASH_BYTES))
        return Blob(digest, size, path, parts)

    def path_of(self, digest: ModelDigest) -> Path:
        """Where the blob lies, or would."""
        return self._blobs / digest.removeprefix(_PREFIX)

    def size_of(self, digest: ModelDigest) -> int | None:
        """The length of a blob in bytes; None when it is not here."""
        path = self.path_of(digest)
        return path.stat().st_size if path.is_file() else None

    def sizes(self) -> dict[ModelDigest, int]:
        """Every blob and its size in bytes."""
        return {
            ModelDigest(_PREFIX + path.name): path.stat().st_size
            for path in self._blobs.iterdir()
            if _BLOB_NAME.fullmatch(path.name)
        }

    def other_bytes(self) -> int:
        """What lies among the incoming and the damaged, in bytes of the disk: a file may have holes."""
        stats = [path.stat() for folder in (self._incoming, self._damaged) for path in folder.iterdir()]
        return sum(min(stat.st_size, stat.st_blocks * _BLOCK_BYTES) for stat in stats)

    def drop(self, digest: ModelDigest) -> None:
        """Delete a blob and what remembers it."""
        for mark in self._marks():
            if _read_mark(mark)[0] == digest:
                mark.unlink(missing_ok=True)
        self.path_of(digest).unlink(missing_ok=True)
        _with_chunks(self.path_of(digest)).unlink(missing_ok=True)
        self._fresh.discard(digest)

    def let_go(self, digests: Collection[ModelDigest]) -> None:
        """The pull that these blobs came for has ended, well or not."""
        self._fresh.difference_update(digests)

    def drop_unnamed(self, named: Collection[ModelDigest], oldest: float) -> int:
        """Delete blobs that no model names, unless a pull brought them since `oldest` (Unix seconds) or still runs.

        While any file comes in, its pull may be the one that the others wait for.

        Returns the bytes freed.
        """
        recent = {_read_mark(mark)[0] for mark in self._marks() if mark.stat().st_mtime >= oldest}
        held = self._fresh if self._is_writing() else frozenset[ModelDigest]()
        freed = 0
        for digest, size in self.sizes().items():
            if digest not in named and digest not in held and digest not in recent:
                self.drop(digest)
                freed += size
        return freed

    def drop_partial(self, oldest: float) -> int:
        """Delete what no pull has gone on with since `oldest` (Unix seconds), and damaged content of that age.

        Returns the bytes freed.
        """
        freed = 0
        for path in [*self._incoming.iterdir(), *self._damaged.iterdir()]:
            is_ours = _INCOMING_NAME.fullmatch(path.name) or _BLOB_NAME.fullmatch(path.name)
            is_written = path.with_suffix(DATA_SUFFIX).name in {*self._coming, *self._opening}
            if is_ours and not is_written and path.suffix != _MARK_SUFFIX and path.stat().st_mtime < oldest:
                freed += path.stat().st_size
                path.unlink(missing_ok=True)
        return freed

    def check(
        self, digest: ModelDigest, progress: Callable[[int], None], stopped: Callable[[], bool]
    ) -> Checked | None:
        """Read every byte; `progress` gets the bytes read with each chunk. None when stopped or when it is gone."""
        read = read_all(self.path_of(digest), progress, stopped)
        if read is None or read.is_unreadable:
            return None if read is None else Checked(False, ())
        is_whole = not read.failed and _PREFIX + read.hash == digest
        expected = self._expected_chunks(digest)
        if is_whole and b"".join(read.chunks) != expected:
            self._write_chunks(digest, read.chunks)
        return Checked(is_whole, () if is_whole else differing(read, expected))

    def set_aside(self, digest: ModelDigest) -> None:
        """Move damaged content out of the way of every model."""
        path = self.path_of(digest)
        with contextlib.suppress(FileNotFoundError):
            path.replace(self._damaged / path.name)
        self.drop(digest)
        sync_directory(self._blobs)

    def _is_writing(self) -> bool:
        return bool(self._coming or self._opening)

    @contextlib.contextmanager
    def _only_writer(self, name: str) -> Generator[Callable[[], object]]:
        """Hold a name while its file is opened; gives what lets go of it once the file is closed."""
        if name in self._coming or name in self._opening:
            raise FelloeError("already_pulling", "the same file is being pulled already")
        self._opening.add(name)
        try:
            yield partial(self._coming.pop, name, None)
        finally:
            self._opening.discard(name)

    def _begin_with_damaged(self, file: GatheredFile, data: Path) -> None:
        """Make damaged content of the digest the start of what comes in, by a rename; each chunk is checked later."""
        damaged = self._damaged / self.path_of(file.digest).name
        if data.exists() or not damaged.exists():
            return
        journal = Journal(data)
        try:
            journal.open(file.size)
            journal.fill(0, b"".join(file.hashes))
            damaged.chmod(0o600)
            damaged.replace(data)
        except OSError as error:
            raise as_disk_error(error, data) from error
        finally:
            journal.close()

    def _keep(self, key: str, file: _Droppable, came: Blob) -> Blob:
        """Move whole content to its place. What lay there is replaced: the new is known to be right."""
        try:
            self._write_chunks(came.digest, came.chunks)
            target = self.path_of(came.digest)
            came.path.chmod(0o400)
            self._fresh.add(came.digest)
            # First the mark: a kill between the two leaves content that the next pull finds whole where it was.
            write_atomic(self._at(key, _MARK_SUFFIX), f"{target.name} {came.size}\n".encode())
            came.path.replace(target)
            sync_directory(self._blobs)
            file.drop()
            (self._damaged / target.name).unlink(missing_ok=True)
        except OSError as error:
            raise as_disk_error(error, self._blobs) from error
        return came._replace(path=target)

    def _write_chunks(self, digest: ModelDigest, chunks: Collection[bytes]) -> None:
        write_atomic(_with_chunks(self.path_of(digest)), b"".join(chunks))

    def _expected_chunks(self, digest: ModelDigest) -> bytes:
        try:
            return _with_chunks(self.path_of(digest)).read_bytes()
        except OSError:
            return b""

    def _marks(self) -> Iterator[Path]:
        return self._incoming.glob(f"*{_MARK_SUFFIX}")

    def _at(self, key: str, suffix: str) -> Path:
        return self._incoming / (blake3(key.encode()).hexdigest() + suffix)


async def _opened(file: IncomingFile | GatheredFile) -> None:
    try:
        await to_the_end(file.open)
    except BaseException:
        file.close()
        raise


def _with_chunks(path: Path) -> Path:
    return path.with_name(path.name + CHUNKS_SUFFIX)


def _read_mark(mark: Path) -> tuple[ModelDigest, int]:
    """Which blob a mark names, and its size in bytes; one that says nothing names none."""
    try:
        name, size = mark.read_text("ascii")[:_MOST_MARK_CHARACTERS].split()
        return ModelDigest(_PREFIX + name), int(size)
    except (OSError, ValueError):
        return ModelDigest(""), 0
