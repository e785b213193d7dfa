"""What this node holds: which name stands for which manifest, and whether its content is there. Blocking.

Content is kept in `blobs.py`, names and manifests in `shelf.py`. Content is whole and durable before a name points to
it, and a name is gone before its content, so a kill at any point leaves at worst content that nobody names.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe.catalog.blobs import Blobs
from felloe.catalog.intake import Facts, TakenFile, chunks_hash, describe
from felloe.catalog.manifests import content_id, encode_manifest, manifest_id, open_signed, sign_manifest, signer_of
from felloe.catalog.rules import digest_of
from felloe.catalog.shelf import Entry, Shelf
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelDigest, ModelName
from felloe.domain.manifest import Manifest, ManifestFile
from felloe.host.files import make_private_directory

_LEFTOVER_SECONDS = 7 * 86_400.0


class Kept(NamedTuple):
    """A name of this node. `problem` says why it cannot be loaded; empty when it can."""

    entry: Entry
    manifest: Manifest
    problem: str = ""


class Holdings:
    """One caller at a time; `names` and `unreadable` may be read at any moment, as they are replaced, never changed."""

    def __init__(self, folder: Path, key: Ed25519PrivateKey, now: Callable[[], float]) -> None:
        self.blobs = Blobs(folder)
        self.names: dict[ModelName, Kept] = {}
        self.unreadable: tuple[str, ...] = ()
        self._folder = folder
        self._shelf = Shelf(folder)
        self._key = key
        self._now = now

    def open(self) -> None:
        """Read everything; drop what is old and unnamed, unless an entry that cannot be read may name it."""
        make_private_directory(self._folder)
        self.blobs.open()
        found, problems = self._shelf.open()
        self.unreadable = tuple(problems)
        self.names = {entry.name: self._looked_at(Kept(entry, manifest)) for entry, manifest in found}
        if not problems:
            self._shelf.drop_unnamed(self._identifiers())
        self.drop_leftovers(self._now() - _LEFTOVER_SECONDS)

    def existing(self, name: str) -> Kept:
        """What is called `name`; raises `model_not_found`."""
        kept = self.names.get(ModelName(name))
        if kept is None:
            raise FelloeError("model_not_found", f"there is no model {name[:128]!r} on this node", param="model")
        return kept

    def path_of(self, name: str) -> Path:
        """Where an engine finds the model; raises `model_not_found`, or `bad_model_file` when it is damaged."""
        kept = self.existing(name)
        if kept.problem:
            raise FelloeError("bad_model_file", kept.problem)
        return self._shelf.path_of(kept.entry.manifest, kept.manifest)

    def renew_view(self, name: str) -> None:
        """Have engines find the model's own files, whatever lies there now; raises as `path_of`, `disk_full`."""
        self.path_of(name)
        kept = self.existing(name)
        self._shelf.make_view(kept.entry.manifest, kept.manifest, self.blobs.path_of)

    def accept(self, name: str | None, files: Sequence[TakenFile], facts: Facts) -> Manifest:
        """Give blobs a name; raises as `ModelStore.accept`."""
        with self._naming(file.blob.digest for file in files):
            _check_here(files)
            manifest = describe(name, files, facts, signer_of(self._key), self._now())
            data = encode_manifest(manifest)
            return self._name(manifest, manifest_id(data), lambda: sign_manifest(data, self._key))

    def take_over(self, envelope: bytes) -> Manifest:
        """Give blobs the name that another node's manifest gives them; raises as `ModelStore.take_over`."""
        manifest, identifier = open_signed(envelope)
        with self._naming(file.digest for file in manifest.files):
            files = [self._taken(file) for file in manifest.files]
            _check_here(files)
            facts = Facts(template=manifest.template, parameters=manifest.defaults, licence=manifest.licence)
            # The headers are looked at as for a pull from a source: an engine must never meet what is no whole model.
            described = describe(manifest.name, files, facts, manifest.made_by, self._now())
            if [file.path for file in described.files] != [file.path for file in manifest.files]:
                raise FelloeError("bad_manifest", "manifest: files: they are not in their order")
            return self._name(manifest, identifier, lambda: envelope)

    def check_name(self, manifest: Manifest) -> None:
        """Raise `invalid_value` when the name of a manifest stands for other files here."""
        known = self.names.get(manifest.name)
        if known is not None and digest_of(known.manifest.files) != digest_of(manifest.files):
            raise _name_taken(known.manifest)

    def envelope_of(self, entry: Entry) -> bytes:
        """The signed manifest that an entry points to; raises `bad_state`."""
        return self._shelf.envelope(entry.manifest)

    def change(self, name: str, *, pinned: bool | None = None, used_at: float | None = None) -> None:
        """Note something of a name; raises `model_not_found`, `disk_full`."""
        kept = self.existing(name)
        before = kept.entry
        entry = Entry(
            name=before.name,
            manifest=before.manifest,
            pinned=before.pinned if pinned is None else pinned,
            used_at=before.used_at if used_at is None else used_at,
        )
        self._shelf.put(entry)
        self.names = {**self.names, entry.name: kept._replace(entry=entry)}

    def remove(self, name: str) -> None:
        """Forget a name and delete what no other needs; also one whose entry cannot be read."""
        kept = self.names.get(ModelName(name))
        if not self._shelf.remove(name) and kept is None:
            self.existing(name)
        if kept is not None:
            self.names = {key: other for key, other in self.names.items() if key != name}
            self._shelf.drop_unnamed(self._identifiers())
            self._drop_unnamed(file.digest for file in kept.manifest.files)

    def set_aside(self, digest: ModelDigest) -> None:
        """Move damaged content out of the way of every model that has it."""
        for kept in self.names.values():
            if any(file.digest == digest for file in kept.manifest.files):
                self._shelf.drop_view(kept.entry.manifest)
        self.blobs.set_aside(digest)
        self._look_at_all()

    def drop_leftovers(self, oldest: float) -> None:
        """Delete what interrupted pulls left before `oldest` (Unix seconds), and damaged content of that age."""
        self.blobs.drop_partial(oldest)
        if not self.unreadable:
            self.blobs.drop_unnamed(self._named(), oldest)

    def used_bytes(self) -> int:
        """What all content takes up, unfinished and damaged included."""
        return sum(self.blobs.sizes().values()) + self.blobs.other_bytes()

    @contextlib.contextmanager
    def _naming(self, digests: Iterable[ModelDigest]) -> Generator[None]:
        """Blobs get a name, or those that nobody names go when they are refused."""
        came = list(digests)
        try:
            yield
        except FelloeError as error:
            if error.code in ("bad_model_file", "bad_manifest"):
                self._drop_unnamed(came)
            self._look_at_all()  # what came may have mended other models all the same
            raise
        finally:
            self.blobs.let_go(came)

    def _name(self, manifest: Manifest, identifier: str, envelope: Callable[[], bytes]) -> Manifest:
        """Have the name of a manifest stand for it, unless it stands for the same content already."""
        known = self.names.get(manifest.name)
        if known is not None and content_id(known.manifest) == content_id(manifest):
            self._enter(known.entry, known.manifest)
            return known.manifest
        self.check_name(manifest)
        self._shelf.put_manifest(identifier, envelope())
        is_pinned = known is not None and known.entry.pinned
        self._enter(Entry(name=manifest.name, manifest=identifier, pinned=is_pinned), manifest)
        return manifest

    def _taken(self, file: ManifestFile) -> TakenFile:
        blob = self.blobs.find(file.digest)
        if blob is None or blob.size != file.size or chunks_hash(blob.chunks) != file.chunks:
            raise FelloeError("bad_model_file", f"{file.path[:80]!r}: file: it is not here as the manifest says")
        return TakenFile(file.path, file.role, blob)

    def _enter(self, entry: Entry, manifest: Manifest) -> None:
        entry = Entry(name=entry.name, manifest=entry.manifest, pinned=entry.pinned, used_at=self._now())
        self._shelf.make_view(entry.manifest, manifest, self.blobs.path_of)
        self._shelf.put(entry)
        self.names = {**self.names, entry.name: Kept(entry, manifest)}
        # What was damaged may be whole again, for every model that has these files.
        self._look_at_all()

    def _look_at_all(self) -> None:
        self.names = {name: self._looked_at(kept) for name, kept in self.names.items()}

    def _looked_at(self, kept: Kept) -> Kept:
        """The same name with what its files are now; a whole model has its view."""
        for file in kept.manifest.files:
            size = self.blobs.size_of(file.digest)
            if size != file.size:
                again = f"pull it again from {kept.manifest.source}" if kept.manifest.source else "pull it again"
                where = self.blobs.path_of(file.digest)
                why = f"size: {size or 0} bytes of {kept.entry.name} instead of {file.size}"
                return kept._replace(problem=f"{where}: {why}; {again}")
        try:
            self._shelf.make_view(kept.entry.manifest, kept.manifest, self.blobs.path_of)
        except FelloeError as error:
            return kept._replace(problem=str(error))
        return kept._replace(problem="")

    def _drop_unnamed(self, digests: Iterable[ModelDigest]) -> None:
        for digest in set(digests) - self._named():
            self.blobs.drop(digest)

    def _named(self) -> frozenset[ModelDigest]:
        return frozenset(file.digest for kept in self.names.values() for file in kept.manifest.files)

    def _identifiers(self) -> frozenset[str]:
        return frozenset(kept.entry.manifest for kept in self.names.values())


def _check_here(files: Sequence[TakenFile]) -> None:
    """A model that had the same file may have been removed, and the file with it, while this one was pulled."""
    for file in files:
        if not file.blob.path.is_file() or file.blob.path.stat().st_size != file.blob.size:
            raise FelloeError("bad_model_file", f"{file.path[:80]!r}: file: it went away during the pull; pull again")


def _name_taken(known: Manifest) -> FelloeError:
    return FelloeError(
        "invalid_value",
        f"the name {known.name!r} already stands for another file ({digest_of(known.files)}); give another name or "
        "remove that model first",
        param="name",
    )
