"""Parts between the engine that delivers them and the stream that sends them."""

import asyncio
from collections.abc import Awaitable

from felloe.domain.requests import Done, Failure, Piece
from felloe.routing.wire import WirePart

_MOST_PARTS = 256


class Outbox:
    """Collects the parts that are ready while the sender is busy, so that they share one message.

    One engine puts, one sender takes. Bounded: the engine is held back while `_MOST_PARTS` are unsent.
    """

    __slots__ = ("_parts", "_room", "_taker", "complete")

    def __init__(self) -> None:
        self._parts: list[WirePart] = []
        self._taker: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self.complete = False

    def put(self, piece: Piece) -> Awaitable[None] | None:
        """Add the next piece; an awaitable to wait for when there are enough (a `Deliver`)."""
        self._parts.append(piece)
        if self._taker is not None:
            self._wake()
        if len(self._parts) < _MOST_PARTS:
            return None
        if self._room is None:
            self._room = asyncio.get_running_loop().create_future()
        return self._room

    def end(self, last: Done | Failure) -> None:
        """Complete the answer."""
        self._parts.append(last)
        self.complete = True
        self._wake()

    async def take(self) -> list[WirePart]:
        """Everything that is ready, at least one part."""
        if not self._parts:
            self._taker = asyncio.get_running_loop().create_future()
            await self._taker
        parts, self._parts = self._parts, []
        if self._room is not None:
            if not self._room.done():
                self._room.set_result(None)
            self._room = None
        return parts

    def _wake(self) -> None:
        taker, self._taker = self._taker, None
        if taker is not None and not taker.done():
            taker.set_result(None)
