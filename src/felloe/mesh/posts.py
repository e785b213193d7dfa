"""Small messages that nobody waits for: credits, cancels, keepalives, refusals.

They leave in the order in which they came. While no hub is connected they wait, so that whoever works for a stream that
was given up meanwhile is told so as soon as it can be.
"""

import asyncio
import contextlib
import logging
from typing import NamedTuple

from felloe.domain.errors import FelloeError
from felloe.mesh.connection import Connection

logger = logging.getLogger(__name__)

MAX_POSTS = 8192
_WAIT_SECONDS = 60.0


class _Post(NamedTuple):
    subject: str
    data: bytes
    reply: str


class Posts:
    """At most 8,192 messages; the newest are dropped beyond that. `run` sends them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._queue: asyncio.Queue[_Post] = asyncio.Queue(MAX_POSTS)
        self._is_full = False

    def post(self, subject: str, data: bytes, reply: str = "") -> None:
        """Send this soon."""
        try:
            self._queue.put_nowait(_Post(subject, data, reply))
            self._is_full = False
        except asyncio.QueueFull:
            if not self._is_full:
                logger.warning("too many control messages wait for the hub; the newest are dropped")
            self._is_full = True

    async def run(self) -> None:
        """Send for ever."""
        while True:
            post = await self._queue.get()
            try:
                await self._send(post)
            finally:
                self._queue.task_done()

    async def sent(self, seconds: float) -> None:
        """Wait until all have left, but no longer than so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._queue.join()

    async def _send(self, post: _Post) -> None:
        while not await self._connection.wait_up(_WAIT_SECONDS):
            continue
        with contextlib.suppress(FelloeError):
            await self._connection.publish(*post)
