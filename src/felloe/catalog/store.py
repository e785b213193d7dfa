"""The models of this node and the one owner of the models folder.

A pull that was interrupted, by a kill too, is found by the next pull of the same; after a week `open` clears it away.
Every change holds one lock, from the look at what is loaded to the last deletion, so that clean-up never takes what is
being loaded.
"""

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe.catalog.blobs import Blobs
from felloe.catalog.checking import Checked
from felloe.catalog.holdings import Holdings, Kept
from felloe.catalog.intake import Facts, TakenFile
from felloe.catalog.manifests import content_id
from felloe.catalog.promises import Promised
from felloe.catalog.rules import Candidate, choose_victims, model_of
from felloe.catalog.stamps import Stamp, Stamps, stamp_of
from felloe.catalog.threads import to_the_end
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, ModelDigest, ModelName
from felloe.domain.manifest import Manifest
from felloe.domain.models import Model

_LOG = logging.getLogger(__name__)
_ANY_AGE = float("inf")
_Result = TypeVar("_Result")

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


class DamagedFile(NamedTuple):
    """A file of a model that is not what it should be; `bad_chunks` of 4 MiB count from 0, empty: all of it."""

    path: str
    bad_chunks: tuple[int, ...]


class Verified(NamedTuple):
    """What reading every byte of a model showed. `source` is where it could be pulled from again, if that is known."""

    name: ModelName
    damaged: tuple[DamagedFile, ...]
    source: str


class Cleaned(NamedTuple):
    """What clean-up deleted; `freed` in bytes."""

    models: tuple[ModelName, ...]
    freed: int


def _no_progress(_done: int, _total: int) -> None:
    pass


def _nothing_loaded() -> Collection[str]:
    return ()


class ModelStore:
    """One process at a time uses a folder: whoever opens the store holds the home's lock.

    `key` signs the manifests of what is pulled here. `quota` in bytes, 0: as much as the disk holds. `loaded` names the
    models that clean-up must not touch.
    """

    def __init__(
        self,
        folder: Path,
        key: Ed25519PrivateKey,
        *,
        quota: int = 0,
        loaded: Callable[[], Collection[str]] = _nothing_loaded,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._holdings = Holdings(folder, key, now)
        self._stamps = Stamps(folder / "verified.json")
        self._quota = quota
        self._loaded = loaded
        self._now = now
        self._changing = asyncio.Lock()
        self._in_use: dict[str, int] = {}
        # Asked for with every piece that another node fetches; `names` is replaced, never changed.
        self._contents: tuple[object, dict[ContentId, ModelName]] = (None, {})

    @property
    def blobs(self) -> Blobs:
        """Where sources put what they fetch."""
        return self._holdings.blobs

    async def open(self) -> None:
        """Read the folder: check that every model's files are there in full length, drop what is old and unnamed."""
        await self._change(self._holdings.open)
        await self._change(self._stamps.open)

    def list(self) -> tuple[Model, ...]:
        """All whole models, by name."""
        return tuple(model_of(kept.manifest) for kept in self.kept() if not kept.problem)

    def kept(self) -> tuple[Kept, ...]:
        """All names, by name, those that cannot be loaded included."""
        return tuple(kept for _, kept in sorted(self._holdings.names.items()))

    def problems(self) -> tuple[str, ...]:
        """What cannot be used, each with the file and the reason."""
        return (*self._holdings.unreadable, *(kept.problem for kept in self.kept() if kept.problem))

    def find(self, name: str) -> Model | None:
        """The model called `name`, if it is here and whole."""
        kept = self._holdings.names.get(ModelName(name))
        return None if kept is None or kept.problem else model_of(kept.manifest)

    def usable(self, name: str) -> Model:
        """The model called `name`; raises `model_not_found`, or `bad_model_file` when it is damaged."""
        self._holdings.path_of(name)
        return model_of(self.manifest_of(name))

    def manifest_of(self, name: str) -> Manifest:
        """All that is known of a model; raises `model_not_found`."""
        return self._holdings.existing(name).manifest

    def path_of(self, name: str) -> Path:
        """The model's (first) GGUF file, beside its other files.

        Raises `model_not_found`, or `bad_model_file` when the model is damaged.
        """
        return self._holdings.path_of(name)

    def contents(self) -> dict[ContentId, ModelName]:
        """The content of every whole model, and the name that it has."""
        names = self._holdings.names
        if self._contents[0] is not names:
            whole = (kept for kept in names.values() if not kept.problem)
            self._contents = names, {content_id(kept.manifest): kept.entry.name for kept in whole}
        return dict(self._contents[1])

    def check_name(self, manifest: Manifest) -> None:
        """Raise `invalid_value` when the name of a manifest stands for other files here: it could not be taken over."""
        self._holdings.check_name(manifest)

    async def envelope_of(self, name: str) -> bytes:
        """The signed manifest of a model; raises `model_not_found`, `bad_state` when the disk does not give it."""
        kept = self._holdings.existing(name)
        return await asyncio.to_thread(self._holdings.envelope_of, kept.entry)

    @contextlib.asynccontextmanager
    async def in_use(self, name: str) -> AsyncGenerator[Path]:
        """The path of a model that is about to be loaded; nothing deletes it meanwhile. Raises as `path_of`."""
        async with self._changing:
            path = self._holdings.path_of(name)
            self._in_use[name] = self._in_use.get(name, 0) + 1
        try:
            with contextlib.suppress(FelloeError):  # a full disk must not keep a model from being loaded
                await self._change(self._holdings.change, name, used_at=self._now())
            yield path
        finally:
            # Waits for a clean-up that runs: it looked before the engine said that it has the model.
            async with self._changing:
                self._in_use[name] -= 1

    async def assure(self, name: str) -> None:
        """Have every file of a model read whole, unless nothing about it has changed since it was found right.

        Raises `model_not_found`, or `bad_model_file` when content is not what the manifest says: it is moved aside.
        """
        await self._change(self._holdings.renew_view, name)
        files = self.manifest_of(name).files
        paths = {file.digest: self.blobs.path_of(file.digest) for file in files}
        before = await asyncio.to_thread(_stamps_of, paths)
        if all(self._stamps.holds(digest, before.get(digest)) for digest in paths):
            return
        for verified in await self.verify(name):
            for damaged in verified.damaged:
                again = f"pull it again{f' from {verified.source}' if verified.source else ''}"
                detail = f"{name}: {damaged.path} is damaged or was tampered with, and was moved aside; {again}"
                raise FelloeError("bad_model_file", detail)
        after = await asyncio.to_thread(_stamps_of, paths)
        right = {digest: stamp for digest, stamp in after.items() if stamp == before.get(digest)}
        await self._change(lambda: self._stamps.note(right, self.blobs.sizes()))

    async def accept(self, name: str | None, files: Sequence[TakenFile], facts: Facts) -> Model:
        """Give whole blobs a name: read their headers, make, sign and keep the manifest.

        Without `name`, the model is called as its file says. The same files and facts again change nothing. Raises
        `bad_model_file` when the files are not one whole model (blobs that nobody names are then gone), `bad_manifest`
        for facts that no manifest may hold, `disk_full`, `invalid_value` when the name stands for other files.
        """
        return model_of(await self._change(self._holdings.accept, name, tuple(files), facts))

    async def take_over(self, envelope: bytes) -> Model:
        """Give whole blobs the name that a signed manifest of another node gives them, and keep that manifest as it is.

        Raises as `accept`, and `bad_manifest` for an envelope that its maker did not sign.
        """
        return model_of(await self._change(self._holdings.take_over, envelope))

    async def set_pinned(self, name: str, pinned: bool) -> None:
        """Have clean-up keep a model, or no longer; raises `model_not_found`."""
        await self._change(self._holdings.change, name, pinned=pinned)

    async def remove(self, name: str) -> None:
        """Forget a model and delete what no other name needs.

        Raises `model_not_found`, or `invalid_value` while it is being loaded.
        """
        await self._change(self._remove, name)

    async def make_room(self, size: int, coming: Promised | None = None) -> None:
        """Delete models that were not used for longest until `size` bytes more fit the quota and the disk.

        They count as taken until `coming`, the open file that brings them or the first of them, is closed. Raises
        `disk_full` when all that may be deleted is not enough; nothing is deleted then.
        """
        if size > 0 and await self._clean_up(self._make_room, size, coming) is None:
            where = f"the quota of {self._quota} bytes and the disk of {self._folder}" if self._quota else self._folder
            others = self.blobs.promised_bytes()
            also = f", where {others} are kept for what is coming in already" if others else ""
            raise FelloeError("disk_full", f"{size} bytes more do not fit {where}{also}")

    async def room(self) -> int:
        """How many bytes fit the quota while nothing is deleted and a tenth of the disk stays free; not below 0."""
        return await self._change(self._room)

    async def clean(self) -> Cleaned:
        """Delete what interrupted pulls left and damaged content, then models until the quota is kept.

        A quota that pinned and loaded models alone exceed stays exceeded.
        """
        return await self._clean_up(self._clean_all)

    async def verify(self, name: str | None = None, progress: Progress = _no_progress) -> tuple[Verified, ...]:
        """Read every byte of a model, or of all. Damaged content is moved aside and is not loaded until the model is
        pulled again. `progress` is called in the event loop. Raises `model_not_found`.
        """
        asked = self.kept() if name is None else (self._holdings.existing(name),)
        sizes = {file.digest: file.size for kept in asked for file in kept.manifest.files}
        loop, done, total = asyncio.get_running_loop(), 0, sum(sizes.values())

        def count(size: int) -> None:
            nonlocal done
            done += size
            loop.call_soon_threadsafe(progress, done, total)

        checked: dict[ModelDigest, Checked] = {}
        for digest in sizes:
            result = await to_the_end(partial(self.blobs.check, digest, count))
            checked[digest] = result or Checked(False, ())
            if not checked[digest].is_whole:
                await self._change(self._holdings.set_aside, digest)
        for problem in self.problems():
            _LOG.warning("model left out: %s", problem)
        there = self._holdings.names
        return tuple(_verified(kept, checked) for kept in asked if kept.entry.name in there)

    async def _change(self, work: Callable[..., _Result], *arguments: object, **named: object) -> _Result:
        """Run blocking work that changes the folder; no other change runs at the same time, whoever is cancelled."""
        async with self._changing:
            return await to_the_end(lambda _: work(*arguments, **named))

    async def _clean_up(self, work: Callable[..., _Result], *arguments: object) -> _Result:
        """As `_change`, telling `work` last which models it must not touch; that is looked up here, in the loop."""
        async with self._changing:
            busy = {*self._loaded(), *(name for name, count in self._in_use.items() if count)}
            return await to_the_end(lambda _: work(*arguments, busy))

    def _remove(self, name: str) -> None:
        if self._in_use.get(name):
            raise FelloeError("invalid_value", f"{name} is being loaded; unload it first")
        self._holdings.remove(name)

    def _make_room(self, size: int, coming: Promised | None, busy: Collection[str]) -> tuple[ModelName, ...] | None:
        if coming is not None:
            coming.promise(0)  # what it was promised before is part of `size`
        victims = self._clean(size + self.blobs.promised_bytes(), busy)
        if victims is not None and coming is not None:
            coming.promise(size)
        return victims

    def _room(self) -> int:
        disk, promised = shutil.disk_usage(self._folder), self.blobs.promised_bytes()
        room = disk.free - disk.total // 10
        if self._quota:
            room = min(room, self._quota - self._holdings.used_bytes())
        return max(0, room - promised)

    def _clean(self, size: int, busy: Collection[str]) -> tuple[ModelName, ...] | None:
        """Delete what must go for `size` bytes more; None, and nothing deleted, when that is not enough."""
        missing = max(0, size - shutil.disk_usage(self._folder).free)
        if self._quota:
            missing = max(missing, self._holdings.used_bytes() + size - self._quota)
        victims = choose_victims(self._candidates(busy), self.blobs.sizes(), missing)
        for victim in victims or ():
            _LOG.info("removed %s to make room; it was not used for longest", victim)
            self._holdings.remove(victim)
        return victims

    def _clean_all(self, busy: Collection[str]) -> Cleaned:
        before = self._holdings.used_bytes()
        self._holdings.drop_leftovers(_ANY_AGE)
        victims = self._clean(self.blobs.promised_bytes(), busy) or ()
        return Cleaned(victims, before - self._holdings.used_bytes())

    def _candidates(self, busy: Collection[str]) -> Sequence[Candidate]:
        return [
            Candidate(
                kept.entry.name,
                kept.entry.used_at,
                is_spared=kept.entry.pinned or kept.entry.name in busy,
                blobs=frozenset(file.digest for file in kept.manifest.files),
            )
            for kept in self.kept()
        ]


def _stamps_of(paths: Mapping[ModelDigest, Path]) -> dict[ModelDigest, Stamp]:
    found = {digest: stamp_of(path) for digest, path in paths.items()}
    return {digest: stamp for digest, stamp in found.items() if stamp is not None}


def _verified(kept: Kept, checked: dict[ModelDigest, Checked]) -> Verified:
    damaged = tuple(
        DamagedFile(file.path, checked[file.digest].bad_chunks)
        for file in kept.manifest.files
        if not checked[file.digest].is_whole
    )
    return Verified(kept.entry.name, damaged, kept.manifest.source)
