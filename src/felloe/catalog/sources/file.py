"""Models that lie on this machine: one GGUF file, a sharded one, or a folder."""

import asyncio
import itertools
import os
import stat
from pathlib import Path
from typing import IO

from felloe.catalog.blobs import Blobs
from felloe.catalog.incoming import Blob
from felloe.catalog.sources.choice import choose, parts_of, roles_of
from felloe.catalog.sources.download import Room, Told
from felloe.catalog.sources.plan import Plan, RemoteFile, file_name
from felloe.catalog.sources.reference import FileReference
from felloe.domain.errors import FelloeError
from felloe.domain.gguf import read_header

_MOST_ENTRIES = 10_000
_READ_BYTES = 2**20


async def plan_file(reference: FileReference) -> Plan:
    """The model at a path. Raises `not_found`, `bad_model_file`, `source_not_found`."""
    return await asyncio.to_thread(_plan, reference.path)


async def copy_file(file: RemoteFile, blobs: Blobs, told: Told, room: Room) -> Blob:
    """The file as a blob of the store; raises `not_found`, `bad_model_file`, `disk_full`. What was copied stays."""
    path = Path(file.local)
    with await asyncio.to_thread(open_file, path) as source:
        facts = os.fstat(source.fileno())
        key = f"file:{path}\n{facts.st_dev}:{facts.st_ino}\n{facts.st_mtime_ns}\n{facts.st_size}"
        if (blob := blobs.received(key)) is not None:
            told(blob.size, blob.size)
            return blob
        incoming = await blobs.receive(key, facts.st_size)
        try:
            await room(facts.st_size - incoming.length, incoming)
            source.seek(incoming.length)
            while data := await asyncio.to_thread(_read, source, path):
                await incoming.write(data)
                told(incoming.length, facts.st_size)
            after = os.fstat(source.fileno())
            if (after.st_mtime_ns, after.st_size) != (facts.st_mtime_ns, facts.st_size):
                await incoming.start_anew()
                raise FelloeError("bad_model_file", f"{path}: size: it changed while it was copied")
            return await incoming.finish()
        finally:
            await incoming.close()


def _plan(text: str) -> Plan:
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        names = [entry.name for entry in itertools.islice(os.scandir(path), _MOST_ENTRIES)]
        folder, chosen = path, choose(names, "", str(path))
    else:
        folder, chosen = path.parent, roles_of(parts_of(path.name))
    files = tuple(
        RemoteFile(
            path=file_name(one.path, text),
            role=one.role,
            local=str(folder / one.path),
            size=_checked(folder / one.path),
        )
        for one in chosen
    )
    return Plan(files=files, source=str(path))


def _checked(path: Path) -> int:
    """The file's size in bytes, once its header can be read: nobody should wait for a copy that is refused then."""
    with open_file(path) as source:
        size = os.fstat(source.fileno()).st_size
        read_header(source.read, file=str(path), file_size=size)
    return size


def open_file(path: Path) -> IO[bytes]:
    """A regular file to read; raises `not_found`, `bad_model_file`."""
    try:
        # Not blocking, or opening a named pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise FelloeError("not_found", f"{path}: there is no such file") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no path"
        raise FelloeError("bad_model_file", f"{path}: file: {why}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FelloeError("bad_model_file", f"{path}: file: it is not a regular file")
    return os.fdopen(descriptor, "rb")


def _read(source: IO[bytes], path: Path) -> bytes:
    try:
        return source.read(_READ_BYTES)
    except OSError as error:
        raise FelloeError("bad_model_file", f"{path}: file: {error.strerror}") from error
