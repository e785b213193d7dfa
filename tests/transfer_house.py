"""Peers that lie, stall and die, files to fetch from them, and a swarm of nodes in time that does not pass."""

import asyncio
import os
import random
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import TypeVar

from blake3 import blake3

from felloe.catalog.transfer.bans import Bans
from felloe.catalog.transfer.circle import Circle
from felloe.catalog.transfer.peers import Came, Peer
from felloe.catalog.transfer.serving import Serving
from felloe.catalog.transfer.swarm import Swarm, SwarmSettings
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, ModelDigest, NodeId

SMALL = 64
"""Bytes of a chunk in the simulated swarm."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_Result = TypeVar("_Result")


def node(number: int) -> NodeId:
    """The id of a node, below 1024."""
    return NodeId((_LETTERS[number // 32] + _LETTERS[number % 32]) * 13)


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing: what was to be waited for is added to the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("everybody waits for ever")
        self.passed += timeout
        return super().select(0)


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumps = _JumpingSelector()
        super().__init__(self._jumps)

    def time(self) -> float:
        return self._jumps.passed


def in_no_time(work: Coroutine[None, None, _Result]) -> _Result:
    """Run `work` in a loop whose clock jumps; it must use no thread and no socket."""
    with asyncio.Runner(loop_factory=_JumpingLoop) as runner:
        return runner.run(work)


class MemoryBans(Bans):
    """Remembers no longer than the test."""

    def __init__(self) -> None:
        super().__init__(Path("unused"), asyncio.get_running_loop().time)
        self.told: list[tuple[NodeId, str]] = []

    async def lied(self, node: NodeId, what: str) -> None:
        self.told.append((node, what))
        self._remember(node)


class MemorySink:
    """A file in memory; `written` holds what was written, chunk by chunk."""

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self.hashes = [blake3(content[at : at + SMALL]).digest() for at in range(0, len(content), SMALL)]
        self.written: dict[int, bytes] = {}
        self.whole = self.length = 0

    async def put(self, chunk: int, data: bytes) -> bool:
        if blake3(data).digest() != self.hashes[chunk]:
            return False
        if chunk not in self.written:
            self.written[chunk] = data
            self.whole |= 1 << chunk
            self.length += len(data)
        return True

    def content(self) -> bytes:
        return b"".join(self.written[chunk] for chunk in range(len(self.hashes)))


Answering = Callable[["MemoryPeer", int, int, Came], Awaitable[bytes]]


_SLICES = 16


class MemoryPeer:
    """A node that has chunks in memory and sends `rate` bytes a second over one line, to all who ask in equal parts."""

    def __init__(self, node: NodeId, sink: MemorySink, rate: float, answering: Answering | None = None) -> None:
        self.node = node
        self.sink = sink
        self.rate = rate
        self.answering = answering
        self.sent = self.most_at_once = 0
        self.is_up = True
        self.answers_by_asker: dict[NodeId, int] = {}
        self._at_once = 0
        self._line = asyncio.Lock()

    async def have(self, digest: ModelDigest, count: int) -> bytes:
        self._check_up()
        await asyncio.sleep(0.001)
        return self.sink.whole.to_bytes(-(-count // 8), "little")

    async def chunks(self, digest: ModelDigest, count: int) -> bytes:
        self._check_up()
        return b"".join(self.sink.hashes)

    async def read(self, digest: ModelDigest, chunk: int, length: int, came: Came) -> bytes:
        self._check_up()
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if self.answering is not None:
                return await self.answering(self, chunk, length, came)
            return await self.honestly(chunk, length, came)
        finally:
            self._at_once -= 1

    async def honestly(self, chunk: int, length: int, came: Came) -> bytes:
        if chunk not in self.sink.written:
            raise FelloeError("not_found", f"chunk {chunk}")
        for part in range(_SLICES):
            size = length * (part + 1) // _SLICES - length * part // _SLICES
            async with self._line:
                await asyncio.sleep(size / self.rate)
            self._check_up()
            came(size)
        self.sent += 1
        return self.sink.written[chunk]

    async def manifest(self, content: ContentId) -> bytes:
        raise FelloeError("not_found", content)

    async def bundle(self) -> bytes:
        raise FelloeError("not_found", "none")

    def _check_up(self) -> None:
        if not self.is_up:
            raise FelloeError("node_unreachable", self.node)


def whole_sink(content: bytes) -> MemorySink:
    sink = MemorySink(content)
    for chunk in range(len(sink.hashes)):
        sink.written[chunk] = content[chunk * SMALL : (chunk + 1) * SMALL]
    sink.whole, sink.length = (1 << len(sink.hashes)) - 1, len(content)
    return sink


async def fetch(
    sink: MemorySink,
    peers: Callable[[], Sequence[Peer]],
    bans: MemoryBans,
    *,
    own: NodeId | None = None,
    seed: int = 8470,
    patience: float = 60.0,
) -> None:
    """Have a sink filled from peers, in chunks of `SMALL` bytes."""
    chance = random.Random(seed)
    own = own or node(1000)
    circle = Circle(peers, bans, own, chance)
    settings = SwarmSettings(patience_seconds=patience)
    digest = ModelDigest(f"blake3:{'0' * 64}")
    await Swarm(digest, sink, circle, settings, chance, lambda _: None, SMALL).run()


class ServedPeer:
    """A node whose store answers; `spoil` may change what it sends for a chunk."""

    def __init__(
        self, node: NodeId, serving: Serving, spoil: Callable[[int, bytes], bytes] = lambda _, data: data
    ) -> None:
        self.node = node
        self.reads: list[int] = []
        self._serving = serving
        self._spoil = spoil

    async def have(self, digest: ModelDigest, count: int) -> bytes:
        return (await self._serving.answer(f"/blobs/{digest.removeprefix('blake3:')}/have")).body

    async def chunks(self, digest: ModelDigest, count: int) -> bytes:
        return (await self._serving.answer(f"/blobs/{digest.removeprefix('blake3:')}/chunks")).body

    async def read(self, digest: ModelDigest, chunk: int, length: int, came: Came) -> bytes:
        self.reads.append(chunk)
        path = f"/blobs/{digest.removeprefix('blake3:')}"
        body = self._spoil(chunk, (await self._serving.answer(path, chunk * 4 * 2**20, length)).body)
        came(len(body))
        return body

    async def manifest(self, content: ContentId) -> bytes:
        return (await self._serving.answer(f"/manifests/{content}")).body

    async def bundle(self) -> bytes:
        return (await self._serving.answer("/catalog")).body


def some_content(chunks: int, last: int = SMALL) -> bytes:
    """Bytes of that many small chunks, the last of `last` bytes."""
    return os.urandom(SMALL * (chunks - 1) + last)
