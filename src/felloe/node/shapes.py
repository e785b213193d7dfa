"""The shapes of models by their content: read from the front of the files, here or at whoever has them, and kept.

A content never changes, so a shape that is known stays true; it is kept in a folder of its own, one small file each.
"""

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from io import BytesIO
from pathlib import Path
from typing import NoReturn

import msgspec

from felloe.domain.errors import FelloeError
from felloe.domain.gguf_layout import GgufLayout, join_layouts, read_layout
from felloe.domain.ids import ContentId, is_content_id
from felloe.domain.manifest import Manifest, ManifestFile
from felloe.host.files import make_private_directory, write_atomic
from felloe.placement.shape import Shape, shape_of

logger = logging.getLogger(__name__)

MOST_SHAPES = 512
MOST_KEPT_BYTES = 2**20
_MOST_FRONT_CHUNKS = 16
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 300.0
_FINAL = ("bad_model_file", "bad_manifest")
_VERSION = 1


class KeptShape(msgspec.Struct, frozen=True):
    """The file of one shape. What another version of the program has kept is read anew from the model."""

    version: int
    content: ContentId
    shape: Shape


class Fronts(msgspec.Struct, frozen=True, kw_only=True):
    """Where shapes come from. `manifest` gives the manifest of an approved content and raises when none is known.

    `here` is the path of a file that lies in the own store, None when it does not; `fetch` brings so many chunks of a
    file, the first of them by its number, from whoever has them, checked against the manifest.
    """

    manifest: Callable[[ContentId], Awaitable[Manifest]]
    here: Callable[[ManifestFile], Path | None]
    fetch: Callable[[ContentId, ManifestFile, int, int], Awaitable[bytes]]


class _TooShortError(Exception):
    """What came so far ends within the header."""


class _Search(msgspec.Struct):
    """A content whose shape is not known yet: why it could not be had, and when to try again."""

    failures: int = 0
    problem: str = ""
    next_at: float = 0.0


class Shapes:
    """Owns `folder`. `run` finds what `find` was asked for and did not know. `clock` is in seconds, never goes back."""

    def __init__(self, folder: Path, fronts: Fronts, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._fronts = fronts
        self._clock = clock
        self._known: OrderedDict[ContentId, Shape] = OrderedDict()
        self._searches: OrderedDict[ContentId, _Search] = OrderedDict()
        self._callbacks: list[Callable[[], None]] = []
        self._wake = asyncio.Event()

    def find(self, content: ContentId) -> Shape | None:
        """The shape of a content; None while it is not known here, and it is being fetched then. Never waits."""
        if content in self._known:
            self._known.move_to_end(content)
            return self._known[content]
        if is_content_id(content) and content not in self._searches:
            self._searches[content] = _Search()
            while len(self._searches) > MOST_SHAPES:
                self._searches.popitem(last=False)
            self._wake.set()
        return None

    def problem(self, content: ContentId) -> str:
        """Why a shape could not be had so far; empty while nothing went wrong."""
        search = self._searches.get(content)
        return "" if search is None else search.problem

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the event loop whenever another shape is known."""
        self._callbacks.append(callback)

    async def run(self) -> NoReturn:
        """Find shapes, one after the other, for ever."""
        while True:
            now = self._clock()
            due = [content for content, search in self._searches.items() if search.next_at <= now]
            if not due:
                waits = [search.next_at - now for search in self._searches.values() if search.next_at < float("inf")]
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(waits, default=None)):
                        await self._wake.wait()
                self._wake.clear()
            for content in due:
                await self._search(content)

    async def _search(self, content: ContentId) -> None:
        try:
            shape = await asyncio.to_thread(self._read, content)
            if shape is None:
                shape = await self._made(content)
                await asyncio.to_thread(self._write, content, shape)
        except (FelloeError, OSError) as error:
            self._put_off(content, error)
            return
        self._searches.pop(content, None)
        self._known[content] = shape
        while len(self._known) > MOST_SHAPES:
            self._known.popitem(last=False)
        for callback in self._callbacks:
            callback()

    def _put_off(self, content: ContentId, error: FelloeError | OSError) -> None:
        search = self._searches.get(content)
        if search is None:
            return
        detail = error.detail if isinstance(error, FelloeError) else f"{error.strerror}"
        logger.info("the header of %s is not known: %s", content[:16], detail)
        is_final = isinstance(error, FelloeError) and error.code in _FINAL
        pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(search.failures, 16))
        search.failures, search.problem = search.failures + 1, detail
        search.next_at = float("inf") if is_final else self._clock() + pause

    async def _made(self, content: ContentId) -> Shape:
        """From the fronts of the model's file, or of its parts; our engine loads no projectors and adapters."""
        manifest = await self._fronts.manifest(content)
        files = [file for file in manifest.files if file.role in ("model", "part")]
        layouts = [await self._layout(content, file) for file in files]
        if not layouts:
            raise FelloeError("bad_manifest", f"{manifest.name} names no model file")
        return shape_of(join_layouts(layouts[0], layouts[1:]))

    async def _layout(self, content: ContentId, file: ManifestFile) -> GgufLayout:
        path = self._fronts.here(file)
        if path is not None:
            return await asyncio.to_thread(_layout_of, path, file)
        front, chunks = b"", 0
        while True:
            more = max(1, chunks)
            front += await self._fronts.fetch(content, file, chunks, more)
            chunks += more
            is_all = chunks >= _MOST_FRONT_CHUNKS or len(front) >= file.size
            try:
                return await asyncio.to_thread(_layout_of_front, front, file, is_all=is_all)
            except _TooShortError:
                continue

    def _read(self, content: ContentId) -> Shape | None:
        try:
            with self._path(content).open("rb") as stream:
                kept = msgspec.json.decode(stream.read(MOST_KEPT_BYTES), type=KeptShape)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return kept.shape if kept.version == _VERSION and kept.content == content else None

    def _write(self, content: ContentId, shape: Shape) -> None:
        make_private_directory(self._folder)
        for old in sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)[: -MOST_SHAPES + 1]:
            old.unlink(missing_ok=True)
        write_atomic(self._path(content), msgspec.json.encode(KeptShape(_VERSION, content, shape)))

    def _path(self, content: ContentId) -> Path:
        return self._folder / f"{content}.json"


def _layout_of(path: Path, file: ManifestFile) -> GgufLayout:
    with path.open("rb") as stream:
        return read_layout(stream.read, file=file.path, file_size=file.size)


def _layout_of_front(front: bytes, file: ManifestFile, *, is_all: bool) -> GgufLayout:
    """From the beginning of a file; raises `_TooShortError` where more of it may help, unless this `is_all`."""
    stream = BytesIO(front)

    def read(size: int) -> bytes:
        data = stream.read(size)
        if not data and not is_all:
            raise _TooShortError
        return data

    return read_layout(read, file=file.path, file_size=file.size)
