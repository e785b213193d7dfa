"""Files that survive a crash and that only their owner can read."""

import errno
import fcntl
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from felloe.domain.errors import FelloeError

# A limit on the size of files counts, too.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def make_private_directory(path: Path) -> Path:
    """Make `path` and its parents; the last one is readable by its owner alone (0700)."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace the file at `path` by `data`, wholly or not at all, also across a power cut.

    Raises `disk_full` when the disk has no room; the old content is then still there.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _as_disk_full(error, path) from error
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise _as_disk_full(error, path) from error
    sync_directory(path.parent)


def write_new(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file that does not exist yet, durably. Raises `FileExistsError` and what else the system raises,
    `disk_full`; what was begun is then gone.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        sync_directory(path.parent)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _as_disk_full(error, path) from error


def as_disk_error(error: OSError, path: Path) -> FelloeError:
    """What an error of the disk means that holds `path`: `disk_full` or `disk_failed`."""
    if error.errno in _NO_ROOM:
        return FelloeError("disk_full", f"no room to write {path}")
    return FelloeError("disk_failed", f"{path}: {error.strerror}")


def _as_disk_full(error: OSError, path: Path) -> Exception:
    return as_disk_error(error, path) if error.errno in _NO_ROOM else error


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable: what was created, renamed or removed in it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class HomeLock:
    """Holds a home folder for one process; the lock goes with the process, however it ends.

    Raises `home_in_use` naming the other process when the folder is held already.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise FelloeError("home_in_use", f"{self._path.parent} is in use by process {holder}") from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
