"""Which files were read whole and found right, and what the file system said of them then.

A file is read before an engine gets it, and again when anything about it has changed: its length, its times, its place
on the disk. The time of the last change of a file cannot be set back by who changes it, so content that was exchanged
under its name is read, whatever its other times say.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelDigest
from felloe.host.files import write_atomic

_MOST_BYTES = 2**22
_HASH = re.compile(r"blake3:[0-9a-f]{64}")


class Stamp(NamedTuple):
    """A file as the file system knows it; times in nanoseconds."""

    size: int
    inode: int
    modified: int
    changed: int


def stamp_of(path: Path) -> Stamp | None:
    """The file's present stamp; None when it is not there. Blocking."""
    try:
        found = path.stat()
    except OSError:
        return None
    return Stamp(found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)


class Stamps:
    """Owns `verified.json` of the models folder. A damaged one only costs reading again. Blocking."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[ModelDigest, Stamp] = {}

    def open(self) -> None:
        """Read what is known."""
        try:
            with self._path.open("rb") as stream:
                known = msgspec.json.decode(stream.read(_MOST_BYTES), type=dict[str, Stamp])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        self._known = {ModelDigest(digest): stamp for digest, stamp in known.items() if _HASH.fullmatch(digest)}

    def holds(self, digest: ModelDigest, stamp: Stamp | None) -> bool:
        """Whether the content of this digest was found right with this stamp."""
        return stamp is not None and self._known.get(digest) == stamp

    def note(self, found: Mapping[ModelDigest, Stamp], there: Mapping[ModelDigest, int]) -> None:
        """Remember what was found right, of the content that is still `there`. A full disk costs reading again."""
        known = {**self._known, **found}
        self._known = {digest: stamp for digest, stamp in known.items() if digest in there}
        try:
            write_atomic(self._path, msgspec.json.encode(self._known))
        except FelloeError:
            return
