"""What hubs tell every node of the network's state, and how a node follows it.

A topic's value is some bytes of at most 512 KiB. A follower hears each change on `state.<topic>` and asks a hub when
it may have missed one.
"""

import asyncio
import logging
from collections.abc import Callable

import msgspec

from felloe.domain.errors import FelloeError
from felloe.mesh.connection import Connection
from felloe.mesh.permissions import state
from felloe.mesh.services import HubClient
from felloe.mesh.session import Message, Subscription

logger = logging.getLogger(__name__)

SERVICE = "state"
RETRY_SECONDS = 1.0


class StateRequest(msgspec.Struct, array_like=True, frozen=True):
    """Ask a hub for a topic's value."""

    topic: str


class StateValue(msgspec.Struct, array_like=True, frozen=True):
    """A topic's value; `epoch` (the generation of the state) and `revision` say which of two is newer.

    `value` is None in an announcement that only tells the newest revision, and when there is no value yet (revision 0).
    """

    epoch: int
    revision: int
    value: bytes | None

    def newer_than(self, other: "StateValue") -> bool:
        """Whether this one replaces `other`."""
        return (self.epoch, self.revision) > (other.epoch, other.revision)


NO_VALUE = StateValue(0, 0, None)


class StateFollower:
    """Every node's side: the newest value of the topics it follows."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._hubs = HubClient(connection)
        self._values: dict[str, StateValue] = {}
        self._callbacks: dict[str, Callable[[bytes], None]] = {}
        self._stale: set[str] = set()
        self._wake = asyncio.Event()
        self._subscriptions: list[Subscription] = []
        self._asker: asyncio.Task[None] | None = None
        connection.on_up(self._line_up)

    async def follow(self, topic: str, callback: Callable[[bytes], None]) -> None:
        """Call `callback` in the event loop with each newer value of `topic`, the present one first."""
        self._callbacks[topic] = callback
        self._values[topic] = NO_VALUE
        self._subscriptions.append(await self._connection.subscribe(state(topic), self._on_message))
        self._ask(topic)
        if self._asker is None:
            self._asker = asyncio.create_task(self._ask_for_ever(), name="state-follow")

    def value(self, topic: str) -> bytes | None:
        """The newest value known; None when there is none, or no hub has told it yet."""
        return self._values.get(topic, NO_VALUE).value

    async def close(self) -> None:
        """Stop following."""
        asker, self._asker = self._asker, None
        if asker is not None:
            asker.cancel()
            await asyncio.wait({asker})
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions.clear()

    def _line_up(self) -> None:
        for topic in self._values:
            self._ask(topic)

    def _ask(self, topic: str) -> None:
        self._stale.add(topic)
        self._wake.set()

    def _on_message(self, message: Message) -> None:
        topic = message.subject.partition(".")[2]
        try:
            value = msgspec.msgpack.decode(message.data, type=StateValue)
        except (msgspec.DecodeError, UnicodeDecodeError):
            logger.warning("a hub's value of %s cannot be read", topic)
            return
        self._take(topic, value)

    def _take(self, topic: str, value: StateValue, *, asked: bool = False) -> None:
        if topic not in self._values or not value.newer_than(self._values[topic]):
            return
        if value.value is None and not asked:
            self._ask(topic)
            return
        self._values[topic] = value
        if value.value is None:
            return
        try:
            self._callbacks[topic](value.value)
        except Exception:
            logger.exception("a follower of %s failed", topic)

    async def _ask_for_ever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for topic in sorted(self._stale):
                self._stale.discard(topic)
                try:
                    self._take(topic, await self._hubs.ask(SERVICE, StateRequest(topic), StateValue), asked=True)
                except FelloeError as error:
                    logger.debug("no hub told %s: %s", topic, error.code)
                    self._stale.add(topic)
            if self._stale:
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()
