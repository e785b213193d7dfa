"""Takes a model file into the models folder: checked, copied and hashed in one pass, whole or not at all."""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from felloe.catalog.rules import check_is_model
from felloe.domain.errors import FelloeError
from felloe.domain.gguf import GgufHeader, read_header
from felloe.domain.ids import ModelDigest

PARTIAL_SUFFIX = ".part"
_CHUNK = 4 * 2**20

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


class Stopped(Exception):
    """The copy was called off."""


class Copied(NamedTuple):
    """A finished copy that still has its temporary name."""

    path: Path
    digest: ModelDigest
    size: int
    header: GgufHeader


def open_source(path: Path) -> IO[bytes]:
    """Open a regular file for reading; raises `not_found` or `bad_model_file`."""
    try:
        # Not blocking, or opening a named pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise FelloeError("not_found", f"{path}: there is no such file") from error
    except OSError as error:
        raise FelloeError("bad_model_file", f"{path}: file: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FelloeError("bad_model_file", f"{path}: file: it is not a regular file")
    return os.fdopen(descriptor, "rb")


def check(stream: IO[bytes], path: Path) -> GgufHeader:
    """The header of a whole text model; leaves the stream at its start."""
    header = read_header(stream.read, file=str(path), file_size=os.fstat(stream.fileno()).st_size)
    check_is_model(header, str(path))
    stream.seek(0)
    return header


def copy_in(source: IO[bytes], path: Path, folder: Path, progress: Progress, stopped: Callable[[], bool]) -> Copied:
    """Copy `source`, opened from `path`, to a temporary file in `folder`, durable when this returns.

    Raises `disk_full`, `bad_model_file` when the file changed under our hands, or `Stopped`; nothing is left then.
    """
    size = os.fstat(source.fileno()).st_size
    if shutil.disk_usage(folder).free < size:
        raise FelloeError("disk_full", f"{folder} has no room for the {size} bytes of {path}")
    try:
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=PARTIAL_SUFFIX)
    except OSError as error:
        raise _explained(error, folder, path) from error
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "w+b", buffering=0) as target:
            digest, copied = _copy(source, target, size, progress, stopped)
            if copied != size:
                raise FelloeError("bad_model_file", f"{path}: size: it changed while it was copied")
            os.fsync(target.fileno())
            target.seek(0)
            header = check(target, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise _explained(error, folder, path) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return Copied(partial, digest, size, header)


def _copy(
    source: IO[bytes], target: IO[bytes], size: int, progress: Progress, stopped: Callable[[], bool]
) -> tuple[ModelDigest, int]:
    hasher = hashlib.sha256()
    copied = 0
    while chunk := source.read(_CHUNK):
        if stopped():
            raise Stopped
        hasher.update(chunk)
        rest = memoryview(chunk)
        while rest:
            rest = rest[target.write(rest) :]
        copied += len(chunk)
        progress(copied, size)
    return ModelDigest(f"sha256:{hasher.hexdigest()}"), copied


def _explained(error: OSError, folder: Path, path: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FelloeError("disk_full", f"{folder} has no room for {path}")
    if error.errno == errno.EIO:
        return FelloeError("bad_model_file", f"{path}: file: {error.strerror}")
    return error
