"""Fetches the chunks of one file from many peers at once.

One loop per file: it sees who is there, has the rules choose, starts what they chose and takes stock of what came. A
chunk is written only by a sink that has checked it.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from felloe.catalog.transfer.circle import Circle, Companion
from felloe.catalog.transfer.peers import Lied
from felloe.catalog.transfer.rules import STALL_SECONDS, Flight, ask_again, choose, look_seconds, most_in_flight
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelDigest
from felloe.domain.manifest import CHUNK_BYTES

_LEAST_BYTES = 4096
_TICK_SECONDS = 0.25


class SwarmSettings(Struct, frozen=True, kw_only=True):
    """How patient a pull is, in seconds, and how fast it may be: `download_rate` in bytes a second, 0: as it can.

    Peers are asked what they have every `look_seconds` at least. Without a byte for `patience_seconds` from anybody the
    pull ends.
    """

    download_rate: float = 0.0
    look_seconds: float = 1.0
    answer_seconds: float = 10.0
    patience_seconds: float = 60.0


class Sink(Protocol):
    """Where chunks go. `whole`: which are there, bit n for chunk n; `length` and `size` in bytes."""

    @property
    def size(self) -> int: ...
    @property
    def whole(self) -> int: ...
    @property
    def length(self) -> int: ...
    async def put(self, chunk: int, data: bytes) -> bool:
        """Write a chunk; False, and nothing is written, when `data` is not that chunk."""
        ...


class _Flying:
    """A chunk on its way from a peer. `came` in bytes, times in seconds of the loop's clock."""

    def __init__(self, companion: Companion, chunk: int, length: int, now: float) -> None:
        self.companion = companion
        self.node = companion.peer.node
        self.chunk = chunk
        self.length = length
        self.began = self.heard = now
        self.came = self.noted = 0
        self.is_here = False

    def count(self, size: int, now: float) -> None:
        """Note bytes that came; a few bytes now and then are none."""
        self.came += size
        self.companion.brought += size
        if self.came > self.length:
            raise Lied(f"more than the {self.length} bytes of a chunk")
        if self.came - self.noted >= min(_LEAST_BYTES, self.length):
            self.noted, self.heard = self.came, now

    def seen(self, now: float) -> Flight:
        """As the rules see it."""
        return Flight(self.node, self.chunk, now - self.began, 0.0 if self.is_here else now - self.heard)


class Swarm:
    """Fetches one file. `told` hears the bytes that are here; `chunk_bytes` is how long a chunk is."""

    def __init__(
        self,
        digest: ModelDigest,
        sink: Sink,
        circle: Circle,
        settings: SwarmSettings,
        chance: random.Random,
        told: Callable[[int], None],
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._digest = digest
        self._sink = sink
        self._circle = circle
        self._settings = settings
        self._chance = chance
        self._told = told
        self._chunk_bytes = chunk_bytes
        self._count = -(-sink.size // chunk_bytes)
        self._clock = asyncio.get_running_loop().time
        self._most = most_in_flight(settings.download_rate)
        self._flying: dict[asyncio.Task[None], _Flying] = {}
        self._looking: list[asyncio.Task[None]] = []
        self._typical = 0.0
        self._renewed_at = float("-inf")
        self._moved_at = self._clock()

    async def run(self) -> None:
        """Return once every chunk is in the sink. Raises `no_holder` when nobody brings anything any more, and what the
        sink raises; what was written stays.
        """
        self._circle.begin_file()
        try:
            while self._wanted():
                self._look_around()
                self._ask()
                self._told(self._length())
                await self._something()
                await self._take_stock()
        finally:
            tasks = [*self._flying, *self._looking]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for flying in self._flying.values():
                flying.companion.in_flight -= 1
        self._told(self._sink.size)

    def _wanted(self) -> int:
        return ((1 << self._count) - 1) & ~self._sink.whole

    def _length(self) -> int:
        here = self._sink.length + sum(flying.came for flying in self._flying.values())
        return min(here, self._sink.size - 1)

    def _look_around(self) -> None:
        """See who is there, and ask those who have not all what they have now."""
        now = self._clock()
        if now - self._renewed_at >= self._settings.look_seconds:
            self._renewed_at = now
            self._circle.renew(now)
        for companion in self._circle.to_look_at(now, look_seconds(self._typical, self._settings.look_seconds)):
            companion.is_being_looked_at = True
            self._looking.append(asyncio.create_task(self._look(companion)))

    async def _look(self, companion: Companion) -> None:
        try:
            async with asyncio.timeout(self._settings.answer_seconds):
                bits = await companion.peer.have(self._digest, self._count)
            if len(bits) != -(-self._count // 8):
                raise Lied(f"{len(bits)} bytes for {self._count} chunks")
            companion.looked(int.from_bytes(bits, "little"), self._count, self._clock())
            companion.succeeded()
        except Lied as lie:
            await self._circle.lied(companion.peer.node, str(lie))
        except FelloeError as error:
            if error.code != "not_found":
                companion.failed(error, self._clock())
            else:
                companion.forget_file()
                companion.looked_at = self._clock()
        except OSError as error:
            companion.failed(error, self._clock())
        finally:
            companion.is_being_looked_at = False

    def _ask(self) -> None:
        """Start what the rules choose."""
        now, room = self._clock(), self._most - len(self._flying)
        if room <= 0:
            return
        wanted, asked = self._wanted(), 0
        for flying in self._flying.values():
            asked |= 1 << flying.chunk
        holders = self._circle.holders(now)
        chosen = choose(wanted, asked, holders, self._circle.stripe(self._count), room, self._chance)
        if not chosen:
            flights = [flying.seen(now) for flying in self._flying.values()]
            chosen = ask_again(wanted, flights, holders, self._typical, room)
        for request in chosen:
            companion = self._circle.find(request.node)
            if companion is not None:
                self._fly(companion, request.chunk)

    def _fly(self, companion: Companion, chunk: int) -> None:
        length = min(self._chunk_bytes, self._sink.size - chunk * self._chunk_bytes)
        flying = _Flying(companion, chunk, length, self._clock())
        companion.in_flight += 1
        self._flying[asyncio.create_task(self._bring(flying))] = flying

    async def _bring(self, flying: _Flying) -> None:
        """Read a chunk and write it; raises `Lied`, `_Failed` when the peer failed, and what the sink raises."""

        def came(size: int) -> None:
            self._moved_at = self._clock()
            flying.count(size, self._moved_at)

        try:
            data = await flying.companion.peer.read(self._digest, flying.chunk, flying.length, came)
        except (FelloeError, OSError) as error:
            raise _Failed(error) from error
        flying.is_here = True
        if not await self._sink.put(flying.chunk, data):
            raise Lied(f"chunk {flying.chunk} of {self._digest} is not what its hash says")

    async def _something(self) -> None:
        """Wait until something came or a moment has passed. Raises `no_holder` when too many moments have."""
        if not self._flying and self._clock() - self._moved_at > self._settings.patience_seconds:
            raise FelloeError("no_holder", f"no node that can be reached has the rest of {self._digest}")
        tasks = [*self._flying, *self._looking]
        if tasks:
            await asyncio.wait(tasks, timeout=_TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(_TICK_SECONDS)

    async def _take_stock(self) -> None:
        """Account for what ended, and end what is late or not needed any more."""
        now, wanted = self._clock(), self._wanted()
        for task in [task for task in self._looking if task.done()]:
            self._looking.remove(task)
            task.result()
        for task, flying in list(self._flying.items()):
            if task.done():
                del self._flying[task]
                await self._account(task, flying)
                flying.companion.in_flight -= 1
            elif not wanted >> flying.chunk & 1:
                task.cancel()
            elif flying.seen(now).quiet >= STALL_SECONDS and not task.cancelling():
                task.cancel()
                flying.companion.failed(TimeoutError("it stalls"), now)

    async def _account(self, task: asyncio.Task[None], flying: _Flying) -> None:
        if task.cancelled():
            return
        failure, now = task.exception(), self._clock()
        if failure is None:
            took = now - flying.began
            self._typical = took if not self._typical else 0.8 * self._typical + 0.2 * took
            self._moved_at = now
            flying.companion.brought_chunk(took)
            flying.companion.succeeded()
        elif isinstance(failure, Lied):
            await self._circle.lied(flying.node, str(failure))
            for other, theirs in self._flying.items():
                if theirs.node == flying.node:
                    other.cancel()
        elif isinstance(failure, _Failed):
            flying.companion.failed(failure.error, now)
        else:
            raise failure


class _Failed(Exception):
    """A peer did not bring what it was asked for."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
