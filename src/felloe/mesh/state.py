"""State that the whole network shares: hubs write it, every node follows it.

A topic's value is some bytes of at most 512 KiB. Hubs keep it in a JetStream bucket, so that what was acknowledged
survives a crash; followers hear each change on `state.<topic>` and ask a hub whenever they may have missed one.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import msgspec
import nats.errors
import nats.js.errors
from nats.js.api import KeyValueConfig, StorageType
from nats.js.kv import KeyValue

from felloe.domain.errors import FelloeError
from felloe.mesh.connection import Connection
from felloe.mesh.permissions import state
from felloe.mesh.services import HubClient, HubServices
from felloe.mesh.session import Message, Subscription

logger = logging.getLogger(__name__)

SERVICE = "state"
BUCKET = "felloe-state"
MAX_VALUE_BYTES = 512 * 1024
HEADER_BYTES = 4096
BUCKET_BYTES = 64 * 1024 * 1024
ANNOUNCE_SECONDS = 10.0
RETRY_SECONDS = 1.0
MAX_TRIES = 16
MAX_TOPICS = 64


class StateRequest(msgspec.Struct, array_like=True, frozen=True):
    """Ask a hub for a topic's value."""

    topic: str


class StateValue(msgspec.Struct, array_like=True, frozen=True):
    """A topic's value; `epoch` (when the bucket was made) and `revision` say which of two is newer.

    `value` is None in an announcement that only tells the newest revision, and when there is no value yet (revision 0).
    """

    epoch: int
    revision: int
    value: bytes | None

    def newer_than(self, other: "StateValue") -> bool:
        """Whether this one replaces `other`."""
        return (self.epoch, self.revision) > (other.epoch, other.revision)


NO_VALUE = StateValue(0, 0, None)


class StateKeeper:
    """A hub's side: writes topics durably and tells everybody."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._told: dict[str, StateValue] = {}
        self._announcer: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()

    async def start(self, services: HubServices) -> None:
        """Make the bucket when there is none, and answer followers; `network_unreachable` without JetStream."""
        for attempt in range(MAX_TRIES):
            try:
                await self._bucket()
                break
            except FelloeError:
                if attempt == MAX_TRIES - 1:
                    raise
                await asyncio.sleep(RETRY_SECONDS / 4)
        await services.serve(SERVICE, StateRequest, self._on_request)
        self._announcer = asyncio.create_task(self._announce_for_ever(), name="state-announce")

    async def get(self, topic: str) -> StateValue:
        """The topic's value as the bucket holds it."""
        bucket, epoch = await self._bucket()
        try:
            entry = await bucket.get(topic)
        except nats.js.errors.KeyNotFoundError:
            return StateValue(epoch, 0, None)
        except (nats.errors.Error, TimeoutError) as error:
            raise _unreachable(error) from error
        else:
            value = self._told[topic] = StateValue(epoch, entry.revision or 0, entry.value)
        return value

    async def change(self, topic: str, function: Callable[[bytes | None], bytes]) -> StateValue:
        """Replace the topic's value by `function` of it; when this returns, the new value is on disk.

        `function` may be called several times, when hubs write at once. Raises `network_unreachable` when the bucket
        does not acknowledge (the change may then be in it or not), `body_too_large`, `overloaded`.
        """
        async with self._writing:
            for _ in range(MAX_TRIES):
                before = await self.get(topic)
                value = function(before.value)
                if len(value) > MAX_VALUE_BYTES:
                    raise FelloeError("body_too_large", f"the value of {topic} would be too large")
                if value == before.value:
                    return before
                written = await self._write(topic, value, before)
                if written is not None:
                    await self._tell(topic, written)
                    return written
        raise FelloeError("overloaded", f"too many hubs write {topic} at once", retry_after=1.0)

    async def close(self) -> None:
        """Stop announcing."""
        announcer, self._announcer = self._announcer, None
        if announcer is not None:
            announcer.cancel()
            await asyncio.wait({announcer})

    async def _bucket(self) -> tuple[KeyValue, int]:
        config = KeyValueConfig(
            bucket=BUCKET,
            history=1,
            storage=StorageType.FILE,
            max_value_size=MAX_VALUE_BYTES + HEADER_BYTES,
            max_bytes=BUCKET_BYTES,
            replicas=1,
        )
        jetstream = self._connection.jetstream()
        try:
            try:
                bucket = await jetstream.key_value(BUCKET)
            except nats.js.errors.BucketNotFoundError:
                bucket = await cast(Any, jetstream).create_key_value(config)
            created = (await bucket.status()).stream_info.created
        except (nats.errors.Error, TimeoutError) as error:
            raise _unreachable(error) from error
        return bucket, int(created.timestamp() * 1_000_000) if created is not None else 0

    async def _write(self, topic: str, value: bytes, before: StateValue) -> StateValue | None:
        """The value as written; None when somebody else wrote meanwhile."""
        bucket, epoch = await self._bucket()
        try:
            revision = await bucket.update(topic, value, last=before.revision)
        except nats.js.errors.KeyWrongLastSequenceError:
            return None
        except (nats.errors.Error, TimeoutError) as error:
            raise _unreachable(error) from error
        return StateValue(epoch, revision, value)

    async def _tell(self, topic: str, value: StateValue) -> None:
        self._told[topic] = value
        try:
            await self._connection.publish(state(topic), msgspec.msgpack.encode(value))
        except FelloeError as error:
            logger.info("%s will be told later: %s", topic, error.code)

    async def _on_request(self, request: StateRequest) -> StateValue:
        try:
            state(request.topic)
        except ValueError:
            raise FelloeError("invalid_value", "that is no topic") from None
        return await self.get(request.topic)

    async def _announce_for_ever(self) -> None:
        while True:
            await asyncio.sleep(ANNOUNCE_SECONDS)
            for topic, value in list(self._told.items())[:MAX_TOPICS]:
                if value.revision:
                    await self._tell(topic, StateValue(value.epoch, value.revision, None))


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

    def _take(self, topic: str, value: StateValue) -> None:
        if topic not in self._values or not value.newer_than(self._values[topic]):
            return
        if value.value is None:
            if value.revision:
                self._ask(topic)
            return
        self._values[topic] = value
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
                    self._take(topic, await self._hubs.ask(SERVICE, StateRequest(topic), StateValue))
                except FelloeError as error:
                    logger.debug("no hub told %s: %s", topic, error.code)
                    self._stale.add(topic)
            if self._stale:
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()


def _unreachable(error: Exception) -> FelloeError:
    return FelloeError("network_unreachable", f"the hub's store does not answer: {type(error).__name__}")
