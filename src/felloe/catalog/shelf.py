"""Which names this node knows, on disk: an entry a name, a signed manifest a model, a folder of links for engines.

`names/<hash>.json` points to `manifests/<id>.json`. `views/<id>/` holds the model's files under their own names, as
hard links to the blobs, because llama.cpp finds further parts and projectors by name. An entry is written last and
deleted first, so a kill at any point leaves at worst a manifest or a view that nobody names.
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

import msgspec

from felloe.catalog.manifests import MOST_ENVELOPE_BYTES, open_signed
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelDigest, ModelName, is_model_name
from felloe.domain.manifest import Manifest, is_manifest_id
from felloe.host.files import as_disk_error, make_private_directory, write_atomic

_MOST_ENTRY_BYTES = 2**12
_UNFINISHED = re.compile(r"\.[0-9a-f]{32,64}\.json\..+")
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one name stands for. `used_at`: when it was pulled or last loaded, in Unix seconds."""

    version: Literal[1] = 1
    name: ModelName
    manifest: str
    pinned: bool = False
    used_at: float = 0.0


class Shelf:
    """Owns `names/`, `manifests/` and `views/` of the models folder. Blocking."""

    def __init__(self, folder: Path) -> None:
        self._names = folder / "names"
        self._manifests = folder / "manifests"
        self._views = folder / "views"

    def open(self) -> tuple[list[tuple[Entry, Manifest]], list[str]]:
        """Every usable entry with its manifest, and what could not be used, with the reason."""
        for folder in (self._names, self._manifests, self._views):
            make_private_directory(folder)
            for path in folder.iterdir():
                if _UNFINISHED.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        found: list[tuple[Entry, Manifest]] = []
        problems: list[str] = []
        for path in sorted(self._names.glob("*.json")):
            try:
                found.append(self._read(path))
            except FelloeError as error:
                problems.append(str(error))
        return found, problems

    def put_manifest(self, identifier: str, envelope: bytes) -> None:
        """Keep a signed manifest; raises `disk_full`."""
        write_atomic(self._manifest(identifier), envelope)

    def envelope(self, identifier: str) -> bytes:
        """A signed manifest that is kept; raises `bad_state`."""
        path = self._manifest(identifier)
        try:
            return _bounded(path, MOST_ENVELOPE_BYTES)
        except OSError as error:
            raise FelloeError("bad_state", f"{path}: {error.strerror}") from error

    def put(self, entry: Entry) -> None:
        """Write what a name stands for; raises `disk_full`, the old entry is then still there."""
        write_atomic(self._entry(entry.name), msgspec.json.format(msgspec.json.encode(entry)))

    def remove(self, name: str) -> bool:
        """Forget a name; False when there was no entry."""
        try:
            self._entry(name).unlink()
        except FileNotFoundError:
            return False
        return True

    def drop_unnamed(self, named: Collection[str]) -> None:
        """Delete manifests and views whose id is not in `named`."""
        for path in self._manifests.glob("*.json"):
            if is_manifest_id(path.stem) and path.stem not in named:
                path.unlink(missing_ok=True)
        for path in self._views.iterdir():
            if is_manifest_id(path.name) and path.name not in named:
                self.drop_view(path.name)

    def drop_view(self, identifier: str) -> None:
        """Delete a model's links; the blobs stay."""
        shutil.rmtree(self._views / identifier, ignore_errors=True)

    def make_view(self, identifier: str, manifest: Manifest, blob: Callable[[ModelDigest], Path]) -> None:
        """Have every file of the model under its own name; links that are right stay. Raises `disk_full`."""
        for file in manifest.files:
            source, link = blob(file.digest), self._views / identifier / file.path
            if link.exists() and link.samefile(source):
                continue
            try:
                link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                _link(source, link)
            except OSError as error:
                raise as_disk_error(error, link) from error

    def path_of(self, identifier: str, manifest: Manifest) -> Path:
        """Where an engine finds the model: its first file, with all others where that one expects them."""
        first = next(file for file in manifest.files if file.role in ("model", "adapter"))
        return self._views / identifier / first.path

    def _read(self, path: Path) -> tuple[Entry, Manifest]:
        try:
            entry = msgspec.json.decode(_bounded(path, _MOST_ENTRY_BYTES), type=Entry)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FelloeError("bad_state", f"{path}: {error}") from error
        if not is_model_name(entry.name) or path != self._entry(entry.name) or not is_manifest_id(entry.manifest):
            raise FelloeError("bad_state", f"{path}: it does not belong to the model that it names")
        try:
            manifest, identifier = open_signed(_bounded(self._manifest(entry.manifest), MOST_ENVELOPE_BYTES))
        except (OSError, FelloeError) as error:
            raise FelloeError("bad_state", f"{path}: the manifest of {entry.name}: {error}") from error
        if identifier != entry.manifest or manifest.name != entry.name:
            raise FelloeError("bad_state", f"{path}: the manifest is another model's than {entry.name}")
        return entry, manifest

    def _entry(self, name: str) -> Path:
        """Named by a hash, because a model's name may hold `/` and file systems differ about upper case."""
        return self._names / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"

    def _manifest(self, identifier: str) -> Path:
        return self._manifests / f"{identifier}.json"


def _bounded(path: Path, most: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(most + 1)


def _link(source: Path, link: Path) -> None:
    try:
        os.link(source, link)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        link.symlink_to(source.absolute())
