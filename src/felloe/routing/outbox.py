"""Parts between the engine that yields them and the stream that sends them."""

import asyncio

from felloe.domain.requests import Done, Failure
from felloe.routing.wire import WirePart

_MOST_PARTS = 256


class Outbox:
    """Collects the parts that are ready while the sender is busy, so that they share one message.

    One reader puts, one sender takes. Bounded: the reader waits while `_MOST_PARTS` are unsent.
    """

    __slots__ = ("_parts", "_room", "_taker", "complete")

    def __init__(self) -> None:
        self._parts: list[WirePart] = []
        self._taker: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self.complete = False

    async def put(self, part: WirePart) -> None:
        """Add the next part; `Done` or `Failure` completes the answer."""
        self._parts.append(part)
        self.complete = isinstance(part, (Done, Failure))
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)
        if len(self._parts) >= _MOST_PARTS and not self.complete:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    async def take(self) -> list[WirePart]:
        """Everything that is ready, at least one part."""
        if not self._parts:
            self._taker = asyncio.get_running_loop().create_future()
            await self._taker
        parts, self._parts = self._parts, []
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        return parts
