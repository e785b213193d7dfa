"""What a node says about itself: its signed record every ten seconds, its load every second, both when they change."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from random import Random
from typing import NoReturn

import msgspec

from felloe.domain.errors import FelloeError
from felloe.domain.roster import Load, NodeRecord
from felloe.mesh.connection import Connection
from felloe.mesh.permissions import roster_load, roster_record
from felloe.mesh.roster_wire import BadRecord, Heartbeat, check_load, decode_record, encode_record
from felloe.mesh.rules import what_counts
from felloe.mesh.telling_rules import spacing

logger = logging.getLogger(__name__)

RECORD_SECONDS = 10.0
HEARTBEAT_SECONDS = 1.0


class Speaking:
    """Owns this node's record and load. `known` counts the members: the more there are, the rarer each speaks.

    Records are issued by the monotonic `clock`, from a `wall` clock that is asked once: one that is set harms nobody.
    """

    def __init__(
        self,
        connection: Connection,
        record: NodeRecord,
        *,
        sign: Callable[[bytes], bytes],
        known: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        random: Random,
    ) -> None:
        self.record: NodeRecord = record
        self.signed = b""
        self.load = Load()
        self._connection = connection
        self._this = record.id
        self._sign = sign
        self._known = known
        self._clock = clock
        self._issuing_since = wall() - clock()
        self._random = random
        self._session = 0
        self._read_load = Load
        self._load_is_stale = False
        self._wake_record = asyncio.Event()
        self._wake_load = asyncio.Event()
        self.set_record(record)

    @property
    def is_hub(self) -> bool:
        """Whether this node says that it is a hub."""
        return "hub" in self.record.roles

    def set_record(self, record: NodeRecord) -> None:
        """Say this from now on; `id`, `issued_at` and `changed_at` are filled in.

        Raises `bad_config` when the others would refuse it.
        """
        newest = self._issuing_since + self._clock()
        if self.signed:
            newest = max(newest, self.record.issued_at + 0.001)
        is_old = bool(self.signed) and what_counts(record) == what_counts(self.record)
        changed_at = self.record.changed_at if is_old else newest
        record = msgspec.structs.replace(record, id=self._this, issued_at=newest, changed_at=changed_at)
        try:
            signed = encode_record(record, self._sign)
            decode_record(signed)
        except BadRecord as error:
            raise FelloeError("bad_config", f"this node's record would be refused: {error}") from error
        self.record, self.signed = record, signed
        self.say_record()

    def set_load(self, read: Callable[[], Load]) -> bool:
        """This node is as busy as `read` tells. False: a change was noted before, and `read` was not asked since."""
        self._read_load = read
        if self._load_is_stale:
            return False
        self._load_is_stale = True
        self.say_load()
        return True

    def refresh_load(self) -> bool:
        """Ask how busy this node is, when that may have changed; whether it has."""
        if not self._load_is_stale:
            return False
        self._load_is_stale = False
        load = self._read_load()
        if load == self.load:
            return False
        try:
            check_load(load)
        except BadRecord:
            logger.error("this node's load cannot be told: the others would refuse it")
            return False
        self.load = load
        return True

    def begin_session(self) -> None:
        """The line is a new one: a newer record tells whoever gave this node up that it can be asked again."""
        self._session += 1
        self.set_record(self.record)
        self.say_load()

    def say_record(self) -> None:
        """Say the record soon."""
        self._wake_record.set()

    def say_load(self) -> None:
        """Say the load soon."""
        self._wake_load.set()

    async def run(self, refresh: Callable[[], None]) -> None:
        """Speak for ever; `refresh` brings the load up to date before it is told."""

        def load() -> tuple[str, bytes]:
            refresh()
            return self._heartbeat()

        await asyncio.gather(
            self._say_for_ever(self._wake_record, RECORD_SECONDS, lambda: (roster_record(self._this), self.signed)),
            self._say_for_ever(self._wake_load, HEARTBEAT_SECONDS, load),
        )

    async def _say_for_ever(
        self, wake: asyncio.Event, seconds: float, tell: Callable[[], tuple[str, bytes]]
    ) -> NoReturn:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds * (0.9 + 0.2 * self._random.random())):
                    await wake.wait()
            wake.clear()
            with contextlib.suppress(FelloeError):
                await self._connection.publish(*tell())
            await asyncio.sleep(spacing(self._known()))

    def _heartbeat(self) -> tuple[str, bytes]:
        heartbeat = Heartbeat(self.load, self.record.issued_at, self._session, self.record.started_at)
        return roster_load(self._this), msgspec.msgpack.encode(heartbeat)
