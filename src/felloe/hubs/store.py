"""One generation of the state: a JetStream stream with one message a key, and its copy in memory.

Every write names the stream's last sequence, so all writes of all hubs stand in one order and none is lost unseen. The
copy is read forward by sequence from whichever server answers: it may be late, never wrong.
"""

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import msgspec
import nats.errors
import nats.js.errors
from nats.js.api import StorageType, StreamConfig

from felloe.domain.errors import FelloeError
from felloe.mesh.connection import Connection
from felloe.mesh.permissions import inbox
from felloe.mesh.session import Message

logger = logging.getLogger(__name__)

MAX_VALUE_BYTES = 512 * 1024
MAX_KEYS = 16_384
POLL_SECONDS = 0.5
WRITE_SECONDS = 3.0
READ_SECONDS = 2.0
BATCH = 256

_STREAM = "felloe"
_KEYS = "state"
_CHANGED = "changed"
_HEADER_BYTES = 4096
_STREAM_BYTES = 256 * 1024 * 1024
_KEY = re.compile(r"[a-z0-9_-]{1,64}(\.[a-z0-9_-]{1,64})?")
_WRONG_LAST_SEQUENCE = (10071, 10164)


class Conflict(Exception):
    """Another write came first; read on and try again."""


class Entry(NamedTuple):
    """A key's value and the sequence of the write that made it; None is a deleted key."""

    value: bytes | None
    sequence: int


class Store:
    """Reads and writes one generation over the line to this hub's state server. Owns the copy in memory."""

    def __init__(self, connection: Connection, generation: int, entries: Mapping[str, Entry] | None = None) -> None:
        self.generation = generation
        self.entries: dict[str, Entry] = dict(entries or {})
        self.sequence = max((entry.sequence for entry in self.entries.values()), default=0)
        self._connection = connection
        self._callbacks: list[Callable[[str], None]] = []
        self._wake = asyncio.Event()
        self._hinted = 0
        self._read_on = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None

    def on_change(self, callback: Callable[[str], None]) -> None:
        """Call `callback` with each key that has changed, in the event loop."""
        self._callbacks.append(callback)

    async def create(self, replicas: int) -> None:
        """Make the stream, or find it made. Raises `network_unreachable` until enough servers are there."""
        config = StreamConfig(
            name=_STREAM,
            subjects=[f"{_KEYS}.>"],
            max_msgs_per_subject=1,
            max_msg_size=MAX_VALUE_BYTES + _HEADER_BYTES,
            max_bytes=_STREAM_BYTES,
            storage=StorageType.FILE,
            num_replicas=replicas,
            allow_direct=True,
            deny_delete=True,
            deny_purge=True,
        )
        try:
            await cast(Any, self._connection.jetstream(WRITE_SECONDS)).add_stream(config)
        except (nats.errors.Error, TimeoutError) as error:
            raise _unreachable(error) from error

    async def start(self) -> None:
        """Keep the copy up to date from now on."""
        await self._connection.subscribe(_CHANGED, self._on_changed)
        self._connection.on_up(self._wake.set)
        self._reader = asyncio.create_task(self._read_for_ever(), name="state-reader")

    async def close(self) -> None:
        """Stop reading."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.wait({reader})

    def get(self, key: str) -> bytes | None:
        """A key's value in the copy."""
        entry = self.entries.get(key)
        return None if entry is None else entry.value

    async def write(self, key: str, value: bytes | None, after: int) -> int:
        """Write as the next of the generation; the new sequence. None deletes.

        Raises `Conflict` when `after` is not the last sequence, `body_too_large`, and `network_unreachable` when no
        acknowledgement came: the write may then be made or not.
        """
        sequence = await self._publish(key, value, {"Nats-Expected-Last-Sequence": str(after)})
        if self.sequence == after:
            self._apply(key, value, sequence)
            await self._tell()
        return sequence

    async def copy(self, key: str, value: bytes) -> None:
        """Write a key that was never written in this generation; a key that was is left alone."""
        with contextlib.suppress(Conflict):
            await self._publish(key, value, {"Nats-Expected-Last-Subject-Sequence": "0"})

    async def read_to(self, sequence: int, seconds: float) -> bool:
        """Wait until the copy holds the write `sequence`; whether it does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._read_on:
                self._hinted = max(self._hinted, sequence)
                self._wake.set()
                await self._read_on.wait_for(lambda: self.sequence >= sequence)
        return self.sequence >= sequence

    async def last_sequence(self) -> int:
        """The last sequence, as the leading server knows it. Raises `network_unreachable`."""
        try:
            info = await self._connection.jetstream(READ_SECONDS).stream_info(_STREAM)
        except (nats.errors.Error, TimeoutError) as error:
            raise _unreachable(error) from error
        return info.state.last_seq

    async def catch_up(self, seconds: float = READ_SECONDS) -> bool:
        """Bring the copy to where the leading server is; whether it got there."""
        try:
            return await self.read_to(await self.last_sequence(), seconds)
        except FelloeError:
            return False

    async def _publish(self, key: str, value: bytes | None, headers: dict[str, str]) -> int:
        if _KEY.fullmatch(key) is None:
            raise FelloeError("internal", "that cannot be a key of the state")
        if value is not None and not 0 < len(value) <= MAX_VALUE_BYTES:
            raise FelloeError("body_too_large", f"the value of {key} would be too large")
        if key not in self.entries and len(self.entries) >= MAX_KEYS:
            raise FelloeError("overloaded", "the network's state holds too many keys")
        try:
            acknowledged = await self._connection.jetstream(WRITE_SECONDS).publish(
                f"{_KEYS}.{key}", value or b"", timeout=WRITE_SECONDS, headers=headers
            )
        except nats.js.errors.APIError as error:
            if error.err_code in _WRONG_LAST_SEQUENCE:
                raise Conflict from error
            raise _unreachable(error) from error
        except (nats.errors.Error, TimeoutError) as error:
            raise _unreachable(error) from error
        return acknowledged.seq

    async def _tell(self) -> None:
        async with self._read_on:
            self._read_on.notify_all()
        with contextlib.suppress(FelloeError):
            await self._connection.publish(_CHANGED, b"%d" % self.sequence)

    def _on_changed(self, message: Message) -> None:
        with contextlib.suppress(ValueError):
            self._hinted = max(self._hinted, int(message.data[:20]))
            self._wake.set()

    async def _read_for_ever(self) -> None:
        while True:
            # A server that is a moment behind the writer is asked again soon.
            behind = self.sequence < self._hinted
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02 if behind else POLL_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            try:
                while await self._read_batch():
                    pass
            except FelloeError as error:
                logger.debug("the state is not read: %s", error.detail)
                self._hinted = 0

    async def _read_batch(self) -> bool:
        """Read the next messages; whether there may be more."""
        inbound: asyncio.Queue[Message] = asyncio.Queue(BATCH + 8)
        reply = f"{inbox(self._connection.node)}.{secrets.token_hex(8)}"
        subscription = await self._connection.subscribe(reply, inbound.put_nowait)
        changed: list[str] = []
        try:
            question = {"batch": BATCH, "seq": self.sequence + 1, "next_by_subj": f"{_KEYS}.>"}
            await self._connection.publish(f"$JS.API.DIRECT.GET.{_STREAM}", msgspec.json.encode(question), reply)
            async with asyncio.timeout(READ_SECONDS):
                while True:
                    message = await inbound.get()
                    headers = message.headers or {}
                    if (status := headers.get("Status")) is not None:
                        more = status == "204" and headers.get("Nats-Num-Pending", "0") != "0"
                        break
                    key, sequence = headers["Nats-Subject"].partition(".")[2], int(headers["Nats-Sequence"])
                    if sequence > self.sequence:
                        self._take(key, message.data or None, sequence)
                        changed.append(key)
        except TimeoutError as error:
            raise _unreachable(error) from error
        except (KeyError, ValueError) as error:
            raise FelloeError("bad_state", "the state server's answer cannot be read") from error
        finally:
            await subscription.close()
            if changed:
                self._notify(changed)
                async with self._read_on:
                    self._read_on.notify_all()
        return more

    def _apply(self, key: str, value: bytes | None, sequence: int) -> None:
        self._take(key, value, sequence)
        self._notify([key])

    def _take(self, key: str, value: bytes | None, sequence: int) -> None:
        self.entries[key] = Entry(value, sequence)
        self.sequence = sequence

    def _notify(self, keys: list[str]) -> None:
        for key in dict.fromkeys(keys):
            for callback in self._callbacks:
                callback(key)


def _unreachable(error: Exception) -> FelloeError:
    return FelloeError("network_unreachable", f"the network's state does not answer: {type(error).__name__}")
