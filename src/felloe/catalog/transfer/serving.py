"""Answers other nodes from the store, also with what has come of files that are not whole. How bytes travel is not
known here.

| path | answer |
|---|---|
| /catalog | the catalogue that this node has |
| /manifests/CONTENT | the signed manifest of a content |
| /blobs/HEX/chunks | the raw BLAKE3 of each 4 MiB chunk, in order |
| /blobs/HEX/have | which chunks are here, a bit each, the lowest first |
| /blobs/HEX | a piece of one chunk, or all of it |
"""

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from felloe.catalog.gathering import Gathering
from felloe.catalog.incoming import Blob
from felloe.catalog.store import ModelStore
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, ModelDigest
from felloe.domain.manifest import CHUNK_BYTES

_LOG = logging.getLogger(__name__)
_MANIFEST = re.compile(r"/manifests/([0-9a-f]{64})")
_BLOB = re.compile(r"/blobs/([0-9a-f]{64})(/chunks|/have)?")
_MOST_RECENT, _MOST_BLOBS = 4, 8


class Answer(NamedTuple):
    """The bytes that were asked for, and how many the whole resource has."""

    body: bytes
    size: int


class Serving:
    """`may_serve` tells of which files others may have chunks now; `bundle` gives the encoded catalogue, if any."""

    def __init__(
        self,
        store: ModelStore,
        *,
        may_serve: Callable[[ModelDigest], bool],
        bundle: Callable[[], bytes | None],
    ) -> None:
        self._store = store
        self._may_serve = may_serve
        self._bundle = bundle
        # A large file has a hundred thousand hashes, which are not to be read for each chunk.
        self._blobs: dict[ModelDigest, Blob] = {}
        # Chunks that were just read and found right: over the mesh they leave in pieces.
        self._recent: OrderedDict[tuple[ModelDigest, int], bytes] = OrderedDict()

    async def answer(self, path: str, start: int = 0, length: int | None = None) -> Answer:
        """`length` bytes (None: all) of what `path` names, from `start` on; of a blob they lie within one chunk.

        Raises `not_found` for what is not here, not whole yet or not for others; `invalid_value` for a range that is
        none.
        """
        if start < 0 or (length is not None and length <= 0):
            raise _no_range(path)
        if path == "/catalog":
            return _part(path, self._bundle() or b"", start, length)
        if match := _MANIFEST.fullmatch(path):
            return _part(path, await self._manifest(path, ContentId(match[1])), start, length)
        if (match := _BLOB.fullmatch(path)) is None:
            raise _not_here(path)
        digest = ModelDigest(f"blake3:{match[1]}")
        if not self._may_serve(digest):
            raise _not_here(path)
        source = self._store.blobs.partial(digest) or await self._whole(digest)
        if source is None:
            raise _not_here(path)
        if match[2] is None:
            return await self._piece(path, digest, source, start, length)
        if match[2] == "/have":
            return _part(path, _have(source), start, length)
        return _part(path, b"".join(_hashes(source)), start, length)

    async def _whole(self, digest: ModelDigest) -> Blob | None:
        known = self._blobs.get(digest)
        if known is not None and self._store.blobs.size_of(digest) == known.size:
            return known
        self._blobs.pop(digest, None)
        found = await asyncio.to_thread(self._store.blobs.find, digest)
        if found is not None:
            self._blobs[digest] = found
        if len(self._blobs) > _MOST_BLOBS:
            self._blobs.pop(next(iter(self._blobs)))
        return found

    async def _manifest(self, path: str, content: ContentId) -> bytes:
        name = self._store.contents().get(content)
        if name is None or not all(self._may_serve(file.digest) for file in self._store.manifest_of(name).files):
            raise _not_here(path)
        return await self._store.envelope_of(name)

    async def _piece(
        self, path: str, digest: ModelDigest, source: Blob | Gathering, start: int, length: int | None
    ) -> Answer:
        chunk, offset = divmod(start, CHUNK_BYTES)
        if length is None or offset + length > CHUNK_BYTES or start + length > source.size:
            raise _no_range(path)
        data = self._recent.get((digest, chunk))
        if data is None:
            data = await asyncio.to_thread(_read, source, chunk)
        if data is None:
            self._blobs.pop(digest, None)
            raise _not_here(path)
        self._recent[digest, chunk] = data
        self._recent.move_to_end((digest, chunk))
        if len(self._recent) > _MOST_RECENT:
            self._recent.popitem(last=False)
        return Answer(data[offset : offset + length], source.size)


def _read(source: Blob | Gathering, chunk: int) -> bytes | None:
    """A chunk, if it is here and as it should be. Blocking."""
    if isinstance(source, Gathering):
        return source.read(chunk)
    data = _read_chunk(source.path, chunk)
    if data is None or blake3(data).digest() == source.chunks[chunk]:
        return data
    _LOG.warning("chunk %d of %s is damaged; `felloe models verify` tells which models have it", chunk, source.digest)
    return None


def _read_chunk(path: Path, chunk: int) -> bytes | None:
    try:
        with path.open("rb", buffering=0) as stream:
            stream.seek(chunk * CHUNK_BYTES)
            return stream.read(CHUNK_BYTES)
    except OSError:
        return None


def _have(source: Blob | Gathering) -> bytes:
    count = len(_hashes(source))
    whole = source.whole if isinstance(source, Gathering) else (1 << count) - 1
    return whole.to_bytes(-(-count // 8), "little")


def _hashes(source: Blob | Gathering) -> tuple[bytes, ...]:
    return source.hashes if isinstance(source, Gathering) else source.chunks


def _part(path: str, whole: bytes, start: int, length: int | None) -> Answer:
    if not whole:
        raise _not_here(path)
    if start >= len(whole):
        raise _no_range(path)
    return Answer(whole[start:] if length is None else whole[start : start + length], len(whole))


def _not_here(path: str) -> FelloeError:
    return FelloeError("not_found", f"{path[:100]!a} is not here")


def _no_range(path: str) -> FelloeError:
    return FelloeError("invalid_value", f"{path[:100]!a} has no such range", param="range")
