"""The models folder and the one owner of what is in it.

Each file is kept under its SHA-256, each name in a small JSON entry that points to a file. A file is complete before
its entry appears, an entry is gone before its file, so a crash at any point leaves at worst a file that nobody names;
`open` clears that away.
"""

import asyncio
import contextlib
import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from felloe.catalog.files import PARTIAL_SUFFIX, Copied, Progress, Stopped, check, copy_in, open_source
from felloe.catalog.rules import choose_name, describe
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelDigest, ModelName, is_model_name
from felloe.domain.models import Model
from felloe.host.files import make_private_directory, write_atomic

_LOG = logging.getLogger(__name__)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_OUR_FILE = re.compile(r"[0-9a-f]{64}\.gguf")
_UNFINISHED_ENTRY = re.compile(r"\.[0-9a-f]{32}\.json\..+")
_MAX_ENTRY_BYTES = 2**16


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One JSON file."""

    version: Literal[1]
    model: Model


def _no_progress(_done: int, _total: int) -> None:
    pass


class ModelStore:
    """The models of this node. One process at a time uses a folder: whoever opens the store holds the home's lock."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._now = now
        self._models: dict[ModelName, Model] = {}
        self._problems: tuple[str, ...] = ()
        # Held by the thread that changes the folder; `_models` is replaced, never changed, so that readers need none.
        self._changing = threading.Lock()

    async def open(self) -> None:
        """Read the folder: drop what a crash left behind, check that every model's file is there in full length."""
        await asyncio.to_thread(self._read_folder)

    def list(self) -> tuple[Model, ...]:
        """All whole models, by name."""
        return tuple(model for _, model in sorted(self._models.items()))

    def problems(self) -> tuple[str, ...]:
        """What `open` could not use, each with the file and the reason."""
        return self._problems

    def find(self, name: str) -> Model | None:
        """The model called `name`, if there is one."""
        return self._models.get(ModelName(name))

    def path_of(self, name: str) -> Path:
        """The file of a model; raises `model_not_found`."""
        return self._file(self._existing(name).digest)

    async def pull_file(self, path: Path, name: str | None = None, progress: Progress = _no_progress) -> Model:
        """Take a GGUF file in under `name`, or under the name that the file gives itself.

        `progress` is called in the event loop. Asking again for the same file and name changes nothing. Raises
        `not_found`, `bad_model_file`, `disk_full`, or `invalid_value` when the name stands for another file.
        """
        loop = asyncio.get_running_loop()
        stop = threading.Event()

        def report(done: int, total: int) -> None:
            loop.call_soon_threadsafe(progress, done, total)

        work = asyncio.create_task(asyncio.to_thread(self._take_in, path, name, report, stop.is_set))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # The thread still writes; it has to end before anyone looks at the folder again.
            stop.set()
            with contextlib.suppress(Stopped, FelloeError, OSError):
                await work
            raise

    async def remove(self, name: str) -> None:
        """Forget a model and delete its file unless another name still needs it; raises `model_not_found`."""
        await asyncio.to_thread(self._remove, name)

    def _existing(self, name: str) -> Model:
        model = self.find(name)
        if model is None:
            raise FelloeError("model_not_found", f"there is no model {name[:128]!r} on this node", param="model")
        return model

    def _file(self, digest: str) -> Path:
        return self._folder / f"{digest.removeprefix('sha256:')}.gguf"

    def _entry(self, name: str) -> Path:
        """Named by a hash, because a model's name may hold `/` and file systems differ about upper case."""
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"

    def _take_in(self, path: Path, name: str | None, progress: Progress, stopped: Callable[[], bool]) -> Model:
        make_private_directory(self._folder)
        with open_source(path) as source:
            header = check(source, path)
            chosen = choose_name(name, header, path.stem)
            known = self.find(chosen)
            if known is not None and known.size != path.stat().st_size:
                raise _name_taken(chosen, known.digest)
            copied = copy_in(source, path, self._folder, progress, stopped)
        try:
            with self._changing:
                if stopped():
                    raise Stopped
                return self._accept(copied, chosen)
        finally:
            copied.path.unlink(missing_ok=True)

    def _accept(self, copied: Copied, name: ModelName) -> Model:
        known = self.find(name)
        if known is not None and known.digest != copied.digest:
            raise _name_taken(name, known.digest)
        model = known or describe(copied.header, name, copied.digest, copied.size, int(self._now()))
        copied.path.replace(self._file(copied.digest))
        # write_atomic syncs the folder, which makes the rename above durable too.
        entry = msgspec.json.format(msgspec.json.encode(_Entry(version=1, model=model)))
        try:
            write_atomic(self._entry(name), entry)
        except BaseException:
            self._drop_unnamed(copied.digest)
            raise
        self._models = {**self._models, name: model}
        return model

    def _remove(self, name: str) -> None:
        with self._changing:
            model = self._existing(name)
            self._models = {key: other for key, other in self._models.items() if key != model.name}
            self._entry(model.name).unlink(missing_ok=True)
            self._drop_unnamed(model.digest)

    def _drop_unnamed(self, digest: str) -> None:
        if all(model.digest != digest for model in self._models.values()):
            self._file(digest).unlink(missing_ok=True)

    def _read_folder(self) -> None:
        make_private_directory(self._folder)
        models: dict[ModelName, Model] = {}
        problems: list[str] = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                model = self._read_entry(path)
                models[model.name] = model
            except FelloeError as error:
                problems.append(str(error))
                _LOG.warning("model left out: %s", error)
        self._models = models
        self._problems = tuple(problems)
        self._clear_leftovers()

    def _read_entry(self, path: Path) -> Model:
        try:
            with path.open("rb") as stream:
                model = msgspec.json.decode(stream.read(_MAX_ENTRY_BYTES), type=_Entry).model
        except (OSError, msgspec.MsgspecError) as error:
            raise FelloeError("bad_state", f"{path}: {error}") from error
        if not is_model_name(model.name) or not _DIGEST.fullmatch(model.digest) or path != self._entry(model.name):
            raise FelloeError("bad_state", f"{path}: it does not belong to the model that it names")
        file = self._file(model.digest)
        size = file.stat().st_size if file.is_file() else 0
        if size != model.size:
            why = f"size: {size} bytes of {model.name} instead of {model.size}"
            raise FelloeError("bad_model_file", f"{file}: {why}")
        return model

    def _clear_leftovers(self) -> None:
        """Delete unfinished copies, and whole files without an entry unless there is an entry that we cannot use."""
        named = {self._file(model.digest).name for model in self._models.values()}
        for path in self._folder.iterdir():
            unfinished = path.name.startswith(".") and path.name.endswith(PARTIAL_SUFFIX)
            unnamed = _OUR_FILE.fullmatch(path.name) and path.name not in named and not self._problems
            if unfinished or unnamed or _UNFINISHED_ENTRY.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _name_taken(name: ModelName, digest: ModelDigest | Literal[""]) -> FelloeError:
    return FelloeError(
        "invalid_value",
        f"the name {name!r} already stands for another file ({digest}); give another name or remove that model first",
        param="name",
    )
