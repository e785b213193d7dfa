"""Other members as the catalogue's swarm knows them: HTTPS to the port that a record names, else over the mesh.

A port that could not be dialled is left alone for some minutes; the node is asked over the mesh meanwhile.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from felloe import __version__
from felloe.catalog.journal import HASH_BYTES
from felloe.catalog.transfer.pacing import Pacer
from felloe.catalog.transfer.peers import Came, Lied
from felloe.domain.approval import MOST_BUNDLE_BYTES, MOST_ENVELOPE_BYTES
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, ModelDigest, NodeId
from felloe.domain.manifest import CHUNK_BYTES
from felloe.domain.roster import HELD_DIGITS, Endpoint, NodeRecord, Roster
from felloe.mesh.connection import Connection
from felloe.mesh.fetching import PIECE_BYTES, FetchAnswer, FetchQuestion, fetch_piece
from felloe.mesh.transfer_https import HttpsReader, Span, Undialable
from felloe.mesh.transfer_tls import MemberTls
from felloe.node.links import Links
from felloe.routing.rules import spoken_versions

logger = logging.getLogger(__name__)

_UNDIALABLE_SECONDS = 180.0
_PIECES_AT_ONCE = 4


class RemotePeer:
    """One member. Raises as the catalogue's `Peer` wants it."""

    def __init__(
        self, node: NodeId, https: HttpsReader | None, connection: Connection, download: Pacer, links: Links
    ) -> None:
        self._node = node
        self._https = https
        self._connection = connection
        self._download = download
        self._links = links
        self._undialable_until = float("-inf")
        self._pieces = asyncio.Semaphore(_PIECES_AT_ONCE)

    @property
    def node(self) -> NodeId:
        """Who it is."""
        return self._node

    async def have(self, digest: ModelDigest, count: int) -> bytes:
        """Which of a blob's `count` chunks it has: a bitmap."""
        return await self._exactly(f"{_blob(digest)}/have", (count + 7) // 8)

    async def chunks(self, digest: ModelDigest, count: int) -> bytes:
        """The hashes of a blob's `count` chunks."""
        return await self._exactly(f"{_blob(digest)}/chunks", count * HASH_BYTES)

    async def read(self, digest: ModelDigest, chunk: int, length: int, came: Came) -> bytes:
        """One chunk; `came` is told of each piece."""
        with self._links.reading(self._node) as measured:

            def came_here(size: int) -> None:
                measured(size)
                came(size)

            return await self._read(_blob(digest), Span(chunk * CHUNK_BYTES, length), length, came_here)

    async def manifest(self, content: ContentId) -> bytes:
        """The signed manifest that it has of a content."""
        return await self._read(f"/manifests/{content}", None, MOST_ENVELOPE_BYTES)

    async def bundle(self) -> bytes:
        """The catalogue that it trusts."""
        return await self._read("/catalog", None, MOST_BUNDLE_BYTES)

    def close(self) -> None:
        """Drop the connections."""
        if self._https is not None:
            self._https.close()

    async def _exactly(self, path: str, length: int) -> bytes:
        found = await self._read(path, None, length)
        if len(found) != length:
            raise Lied(f"{self._node} sent {len(found)} bytes of {path} instead of {length}")
        return found

    async def _read(self, path: str, span: Span | None, most: int, came: Came = lambda _: None) -> bytes:
        async def take(size: int) -> None:
            came(size)
            await self._download.take(size)

        clock = asyncio.get_running_loop().time
        try:
            if self._https is not None and clock() >= self._undialable_until:
                try:
                    return await self._https.read(path, span, most, take)
                except Undialable as error:
                    logger.info("%s: it is asked over the mesh for %.0f s", error.detail, _UNDIALABLE_SECONDS)
                    self._undialable_until = clock() + _UNDIALABLE_SECONDS
            return await self._over_mesh(path, span, most, take)
        except FelloeError as error:
            if error.code == "source_failed":
                raise Lied(error.detail) from error
            raise

    async def _over_mesh(
        self, path: str, span: Span | None, most: int, came: Callable[[int], Awaitable[None]]
    ) -> bytes:
        """The same in pieces, several of them under way at once."""

        async def piece(at: int, length: int) -> FetchAnswer:
            async with self._pieces:
                answer = await fetch_piece(self._connection, self._node, FetchQuestion(path, at, length))
            await came(len(answer.piece))
            return answer

        parts = list[bytes]()
        if span is None:
            first = await piece(0, min(PIECE_BYTES, max(1, most)))
            if first.size > most:
                raise FelloeError("source_failed", f"{self._node} has {first.size} bytes of {path} instead of {most}")
            parts.append(first.piece)
            span = Span(len(first.piece), first.size - len(first.piece))
        end = span.start + span.length
        spans = [(at, min(PIECE_BYTES, end - at)) for at in range(span.start, end, PIECE_BYTES)]
        answers = await _all([piece(at, length) for at, length in spans])
        if any(len(answer.piece) != length for answer, (_, length) in zip(answers, spans, strict=True)):
            raise FelloeError("node_unreachable", f"{self._node} sent too little of {path}")
        return b"".join((*parts, *(answer.piece for answer in answers)))


class _Seen(NamedTuple):
    """What connections were made for; after a change of it they are made anew."""

    started_at: float
    place: Endpoint | None
    credentials: int


class PeerFinder:
    """Which members can be asked, by the newest roster. Keeps one `RemotePeer` for each, with its connections."""

    def __init__(
        self, connection: Connection, roster: Callable[[], Roster], tls: MemberTls, download: Pacer, links: Links
    ) -> None:
        self._connection = connection
        self._roster = roster
        self._tls = tls
        self._download = download
        self._links = links
        self._peers: dict[NodeId, tuple[_Seen, RemotePeer]] = {}

    def holders(self, content: ContentId) -> Sequence[RemotePeer]:
        """The living members that say that they hold some of a content."""
        return [self._peer(record) for record in self._others() if content[:HELD_DIGITS] in record.holds]

    def some(self, count: int) -> Sequence[RemotePeer]:
        """A few members that can be dialled, by chance; also such as have fallen silent."""
        dialable = [record for record in self._others(alive=False) if record.transfer is not None]
        return [self._peer(record) for record in random.sample(dialable, min(count, len(dialable)))]

    def close(self) -> None:
        """Drop all connections."""
        for _, peer in self._peers.values():
            peer.close()
        self._peers.clear()

    def _others(self, *, alive: bool = True) -> list[NodeRecord]:
        roster = self._roster()
        spoken = spoken_versions(__version__, roster)
        found = [member.record for member in roster.members.values() if member.alive or not alive]
        return [record for record in found if record.id != roster.this and record.version in spoken]

    def _peer(self, record: NodeRecord) -> RemotePeer:
        seen = _Seen(record.started_at, record.transfer, self._tls.generation)
        known = self._peers.get(record.id)
        if known is not None and known[0] == seen:
            return known[1]
        if known is not None:
            known[1].close()
        https = None if record.transfer is None else HttpsReader(record.id, record.transfer, self._tls)
        peer = RemotePeer(record.id, https, self._connection, self._download, self._links)
        self._peers[record.id] = (seen, peer)
        self._forget_gone()
        return peer

    def _forget_gone(self) -> None:
        members = self._roster().members
        for node in [node for node in self._peers if node not in members]:
            self._peers.pop(node)[1].close()


def _blob(digest: ModelDigest) -> str:
    return f"/blobs/{digest.removeprefix('blake3:')}"


async def _all(works: Sequence[Awaitable[FetchAnswer]]) -> list[FetchAnswer]:
    """All results; when one fails or the caller is cancelled, the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
