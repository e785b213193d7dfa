"""Brings one file into the store: goes on where an earlier try stopped, and never mixes two versions of a file."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import httpx

from felloe.catalog.blobs import Blobs
from felloe.catalog.incoming import Blob, Incoming
from felloe.catalog.sources.address_rules import parse_url, shown
from felloe.catalog.sources.plan import RemoteFile
from felloe.catalog.sources.retry_rules import Interrupted
from felloe.catalog.sources.settings import Limits
from felloe.catalog.sources.web import Credentials, Web, pieces
from felloe.domain.errors import FelloeError

Room = Callable[[int, Incoming], Awaitable[None]]
"""Asked for the bytes that are still to come, and the open file that they go to."""

Told = Callable[[int, int], None]
"""Hears how many bytes of how many are here."""

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")
_MOST_VERSIONS = 3
_MODEL_ROLES = ("model", "part", "projector", "adapter")


class _Changed(Exception):
    """The server has another version of the file now."""


class _Version(NamedTuple):
    """One version of a remote file: what asks for it again, its length, and the key of what has come of it."""

    key: str
    size: int
    validator: str


class Download:
    """One file's way."""

    def __init__(
        self,
        file: RemoteFile,
        web: Web,
        credentials: Credentials,
        blobs: Blobs,
        limits: Limits,
        told: Told,
        room: Room,
    ) -> None:
        self._file = file
        self._web = web
        self._credentials = credentials
        self._blobs = blobs
        self._limits = limits
        self._told = told
        self._room = room
        self._where = shown(parse_url(file.url))

    async def run(self) -> Blob:
        """The file as a blob of the store. Raises what `Web.open` and `Incoming` raise; what has come stays."""
        for _ in range(_MOST_VERSIONS):
            version = await self._version()
            try:
                return await self._fetch(version)
            except _Changed:
                continue
        raise FelloeError("source_failed", f"{self._where}: the file changes while it is fetched")

    async def _version(self) -> _Version:
        file = self._file
        if file.sha256 is not None and file.size is not None:
            return _Version(f"sha256:{file.sha256}", file.size, "")
        patience = self._web.patience()
        while True:
            try:
                async with self._web.open(file.url, self._credentials, {}) as answer:
                    return self._version_of(answer)
            except Interrupted as failure:
                await patience.bear(failure)

    def _version_of(self, answer: httpx.Response) -> _Version:
        self._check_kind(answer)
        length = answer.headers.get("Content-Length", "")
        if answer.status_code != 200 or not (length.isascii() and length.isdigit() and len(length) < 20):
            raise FelloeError("source_failed", f"{self._where} does not say how long the file is")
        if self._file.size not in (None, int(length)):
            raise FelloeError("source_failed", f"{self._where} has {length} bytes instead of {self._file.size}")
        validator = _validator(answer)
        key = f"sha256:{self._file.sha256}" if self._file.sha256 else f"{self._file.url}\n{validator}\n{length}"
        return _Version(key, int(length), validator)

    async def _fetch(self, version: _Version) -> Blob:
        known = bool(self._file.sha256 or version.validator)
        if known and (blob := self._blobs.received(version.key)) is not None:
            self._told(blob.size, blob.size)
            return blob
        incoming = await self._blobs.receive(version.key, version.size, self._file.sha256)
        try:
            # Without a hash or a validator nobody can tell whether the rest belongs to what is here.
            if incoming.length > version.size or (incoming.length and not known):
                await incoming.start_anew()
            await self._room(version.size - incoming.length, incoming)
            await self._complete(incoming, version)
            return await incoming.finish()
        except _Changed:
            await incoming.start_anew()
            raise
        finally:
            await incoming.close()

    async def _complete(self, incoming: Incoming, version: _Version) -> None:
        patience = self._web.patience()
        furthest = incoming.length
        while incoming.length < version.size:
            try:
                await self._attempt(incoming, version)
            except Interrupted as failure:
                # The furthest point ever reached: coming there again after a fresh start is no progress.
                if incoming.length >= furthest + self._limits.progress_bytes:
                    patience.progressed()
                furthest = max(furthest, incoming.length)
                if incoming.length and not (self._file.sha256 or version.validator):
                    await incoming.start_anew()
                await patience.bear(failure)

    async def _attempt(self, incoming: Incoming, version: _Version) -> None:
        headers = {"Range": f"bytes={incoming.length}-"} if incoming.length else {}
        if incoming.length and version.validator:
            headers["If-Range"] = version.validator
        async with self._web.open(self._file.url, self._credentials, headers) as answer:
            await self._check_part(answer, incoming, version)
            await self._take(answer, incoming, version)

    async def _check_part(self, answer: httpx.Response, incoming: Incoming, version: _Version) -> None:
        """Raise unless the answer goes on where `incoming` stops; a whole file empties `incoming` first."""
        self._check_kind(answer)
        if version.validator and _validator(answer) != version.validator:
            raise _Changed
        if answer.status_code == 206:
            match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if match is not None and int(match[1]) == incoming.length and int(match[3]) == version.size:
                return
        if answer.status_code in (206, 416):
            await incoming.start_anew()
            raise Interrupted(f"{self._where} answers with another part than was asked for")
        length = answer.headers.get("Content-Length")
        if length is not None and length != str(version.size):
            if version.validator:
                raise _Changed
            raise FelloeError("source_failed", f"{self._where} has {length[:20]} bytes instead of {version.size}")
        if incoming.length:
            await incoming.start_anew()

    async def _take(self, answer: httpx.Response, incoming: Incoming, version: _Version) -> None:
        clock = asyncio.get_running_loop().time
        window_end, window_bytes = clock() + self._limits.stall_seconds, 0
        self._told(incoming.length, version.size)
        async for piece in pieces(answer):
            self._check_piece(piece, incoming, version)
            await incoming.write(piece)
            self._told(incoming.length, version.size)
            window_bytes += len(piece)
            if clock() > window_end:
                if window_bytes < self._limits.least_bytes and incoming.length < version.size:
                    raise Interrupted(f"{self._where} sends next to nothing")
                window_end, window_bytes = clock() + self._limits.stall_seconds, 0
        if incoming.length < version.size:
            raise Interrupted(f"{self._where}: the transfer was cut")

    def _check_piece(self, piece: bytes, incoming: Incoming, version: _Version) -> None:
        if incoming.length + len(piece) > version.size:
            raise FelloeError("source_failed", f"{self._where} sends more than the {version.size} bytes announced")
        begins = incoming.length == 0 and self._file.role in _MODEL_ROLES
        if begins and len(piece) >= 4 and not piece.startswith(b"GGUF"):
            raise FelloeError("bad_model_file", f"{self._where}: magic: it is not GGUF")

    def _check_kind(self, answer: httpx.Response) -> None:
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if self._file.role in _MODEL_ROLES and kind in ("text/html", "application/xhtml+xml"):
            raise FelloeError("source_failed", f"{self._where} answers with a web page instead of the file")


def _validator(answer: httpx.Response) -> str:
    """What `If-Range` may hold: a strong entity tag, else the date of the last change (RFC 9110, 13.1.5)."""
    tag = answer.headers.get("ETag", "").strip()
    if tag.startswith('"') and len(tag) <= 1024:
        return tag
    return answer.headers.get("Last-Modified", "").strip()[:64]
