"""The one owner of the roster: what this node says about itself, and what it believes of the others."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from random import Random
from types import MappingProxyType
from typing import TypeVar

import msgspec

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Load, Member, NodeRecord, Roster
from felloe.mesh.connection import Connection
from felloe.mesh.permissions import ROSTER, roster_load, roster_record
from felloe.mesh.roster_wire import (
    MAX_PAGE_BYTES,
    BadRecord,
    Heartbeat,
    RosterEntry,
    RosterPage,
    RosterRequest,
    check_load,
    decode_heartbeat,
    decode_record,
    encode_record,
    parse_id,
)
from felloe.mesh.rules import Census, Heard
from felloe.mesh.services import HubClient, HubServices
from felloe.mesh.session import Message, Subscription

logger = logging.getLogger(__name__)

SERVICE = "roster"
RECORD_SECONDS = 10.0
HEARTBEAT_SECONDS = 1.0
SHORTEST_SECONDS = 0.05
SWEEP_SECONDS = 0.5
BATCH_SECONDS = 0.05
SEEN_SECONDS = 1.0
SYNC_SECONDS = 2.0
INTRODUCTIONS_PER_SECOND = 1000
MAX_PAGES = 10_000

T = TypeVar("T")


class RosterService:
    """Publishes this node's record and load, keeps the snapshot of all members. Implements `Rosters`.

    `sign` signs with the node key. `clock` is monotonic, `wall` is Unix time, both in seconds.
    """

    def __init__(
        self,
        connection: Connection,
        record: NodeRecord,
        *,
        sign: Callable[[bytes], bytes],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        random: Random | None = None,
    ) -> None:
        self._connection = connection
        self._hubs = HubClient(connection)
        self._this = record.id
        self._sign = sign
        self._clock = clock
        self._wall = wall
        self._random = random or Random()  # noqa: S311  only spreads messages
        self._record: NodeRecord = record
        self._load = Load()
        self._read_load = Load
        self._load_is_stale = False
        self._signed = b""
        self._census = Census(clock())
        self._roster = Roster(self._this, MappingProxyType({}), 0)
        self._built = clock()
        self._dirty: set[NodeId] = set()
        self._seen: set[NodeId] = set()
        self._batch: asyncio.TimerHandle | None = None
        self._introduction: asyncio.TimerHandle | None = None
        self._change_callbacks: list[Callable[[Roster], None]] = []
        self._loss_callbacks: list[Callable[[NodeId], None]] = []
        self._say_record = asyncio.Event()
        self._say_load = asyncio.Event()
        self._sync = asyncio.Event()
        self._subscription: Subscription | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.set_record(record)
        connection.on_up(self._line_up)

    def snapshot(self) -> Roster:
        """The newest snapshot; `seen_at` in it is at most about a second old."""
        if self._seen and self._clock() - self._built > SEEN_SECONDS:
            self._rebuild()
        return self._roster

    def on_change(self, callback: Callable[[Roster], None]) -> None:
        """Call `callback` in the event loop after each change of a record, a load, or who is alive."""
        self._change_callbacks.append(callback)

    def on_loss(self, callback: Callable[[NodeId], None]) -> None:
        """Call `callback` at once when a node dies or is seen to have started anew: its answers will not come."""
        self._loss_callbacks.append(callback)

    def set_record(self, record: NodeRecord) -> None:
        """Say this about this node from now on; `issued_at` is filled in. Raises `bad_config` when it is too large."""
        newest = max(self._wall(), self._record.issued_at + 0.001) if self._signed else self._wall()
        record = msgspec.structs.replace(record, id=self._this, issued_at=newest)
        try:
            signed = encode_record(record, self._sign)
            decode_record(signed, newest)
        except BadRecord as error:
            raise FelloeError("bad_config", f"this node's record would be refused: {error}") from error
        self._record, self._signed = record, signed
        self._say_record.set()
        self._note(self._census.hear_record(record, signed, self._clock()))

    def set_load(self, read: Callable[[], Load]) -> None:
        """This node is as busy as `read` tells; call again when that may have changed.

        `read` is asked when the network is told, at most every 50 ms, so a call costs nothing for each request.
        """
        self._read_load = read
        if self._load_is_stale:
            return
        self._load_is_stale = True
        self._say_load.set()
        self._publish_soon()

    async def start(self) -> None:
        """Listen to the others, speak, and ask a hub who is there."""
        self._subscription = await self._connection.subscribe(ROSTER, self._on_message)
        self._tasks = [
            asyncio.create_task(self._say_for_ever(self._say_record, RECORD_SECONDS, self._tell_record)),
            asyncio.create_task(self._say_for_ever(self._say_load, HEARTBEAT_SECONDS, self._tell_load)),
            asyncio.create_task(self._sweep_for_ever()),
            asyncio.create_task(self._sync_for_ever()),
        ]
        if self._connection.is_up:
            self._line_up()

    async def serve(self, services: HubServices) -> None:
        """On a hub: answer newcomers with all members, page by page."""
        await services.serve(SERVICE, RosterRequest, self._page)

    async def close(self) -> None:
        """Stop listening and speaking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        for timer in (self._batch, self._introduction):
            if timer is not None:
                timer.cancel()
        self._batch = None
        if self._subscription is not None:
            await self._subscription.close()

    # What is heard

    def _on_message(self, message: Message) -> None:
        try:
            self._note(self._hear(message.subject, message.data))
        except BadRecord as error:
            logger.warning("refused %s: %s", message.subject[:80], error)

    def _hear(self, subject: str, data: bytes) -> Heard:
        _, first, second = subject.split(".", 2)
        if first == "gone":
            return self._hear_gone(parse_id(second))
        node = parse_id(first)
        if node == self._this:
            return Heard()
        now = self._clock()
        if second == "load":
            heartbeat = decode_heartbeat(data)
            if self._census.lacks(node, heartbeat.issued_at):
                self._sync.set()
            self._seen.add(node)
            return self._census.hear_load(node, heartbeat.load, now)
        if second != "record":
            return Heard()
        if self._census.has(node, data):
            return self._census.hear_load(node, self._census.known[node].load, now)
        record = decode_record(data, self._wall())
        if record.id != node:
            raise BadRecord("the record is another node's")
        is_new = node not in self._census.known
        heard = self._census.hear_record(record, data, now)
        if "hub" in record.roles and (is_new or node in heard.lost):
            self._introduce()
        return heard

    def _hear_gone(self, node: NodeId) -> Heard:
        if node != self._this:
            return self._census.hear_gone(node)
        # A hub saw an earlier connection of this node close; tell everybody that it lives.
        self._say_load.set()
        return Heard()

    def _introduce(self) -> None:
        """A hub has just started and must know everybody, to tell newcomers; not all speak at the same moment."""
        crowd = len(self._census.known) / INTRODUCTIONS_PER_SECOND
        self._introduction = asyncio.get_running_loop().call_later(self._random.random() * crowd, self._say_record.set)

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = self._clock()
            self._refresh_load()
            self._census.hear_load(self._this, self._load, now)
            self._note(self._census.sweep(now))

    # What the snapshot shows

    def _note(self, heard: Heard) -> None:
        if heard.changed:
            self._dirty.update(heard.changed)
            if heard.lost:
                self._publish_snapshot()
            else:
                self._publish_soon()
        for node in heard.lost:
            _call_all(self._loss_callbacks, node)

    def _publish_soon(self) -> None:
        if not self._tasks:
            self._publish_snapshot()
        elif self._batch is None:
            self._batch = asyncio.get_running_loop().call_later(BATCH_SECONDS, self._publish_snapshot)

    def _publish_snapshot(self) -> None:
        if self._batch is not None:
            self._batch.cancel()
            self._batch = None
        self._refresh_load()
        self._rebuild()
        _call_all(self._change_callbacks, self._roster)

    def _refresh_load(self) -> None:
        """Ask how busy this node is, when that may have changed."""
        if not self._load_is_stale:
            return
        self._load_is_stale = False
        load = self._read_load()
        if load == self._load:
            return
        try:
            check_load(load)
        except BadRecord:
            logger.error("this node's load cannot be told: the others would refuse it")
            return
        self._load = load
        self._dirty.update(self._census.hear_load(self._this, load, self._clock()).changed)

    def _rebuild(self) -> None:
        now = self._built = self._clock()
        wall = self._wall()
        members = dict(self._roster.members)
        for node in self._dirty | self._seen:
            known = self._census.known.get(node)
            if known is None:
                members.pop(node, None)
            else:
                seen_at = wall - (now - known.heard)
                members[node] = Member(record=known.record, load=known.load, alive=known.alive, seen_at=seen_at)
        self._dirty.clear()
        self._seen.clear()
        self._roster = Roster(self._this, MappingProxyType(members), self._roster.version + 1)

    # What this node says

    def _line_up(self) -> None:
        self._say_record.set()
        self._say_load.set()
        self._sync.set()

    async def _say_for_ever(self, wake: asyncio.Event, seconds: float, tell: Callable[[], tuple[str, bytes]]) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds * (0.9 + 0.2 * self._random.random())):
                    await wake.wait()
            wake.clear()
            with contextlib.suppress(FelloeError):
                await self._connection.publish(*tell())
            await asyncio.sleep(SHORTEST_SECONDS)

    def _tell_record(self) -> tuple[str, bytes]:
        return roster_record(self._this), self._signed

    def _tell_load(self) -> tuple[str, bytes]:
        self._refresh_load()
        heartbeat = Heartbeat(self._load, self._record.issued_at)
        return roster_load(self._this), msgspec.msgpack.encode(heartbeat)

    # What hubs tell newcomers

    async def _sync_for_ever(self) -> None:
        while True:
            await self._sync.wait()
            self._sync.clear()
            try:
                await self._fetch()
            except FelloeError as error:
                logger.debug("no roster from a hub: %s", error.code)
            await asyncio.sleep(SYNC_SECONDS * (0.5 + self._random.random()))

    async def _fetch(self) -> None:
        after = ""
        for _ in range(MAX_PAGES):
            page = await self._hubs.ask(SERVICE, RosterRequest(after), RosterPage)
            for entry in page.entries:
                after = max(after, self._take_entry(entry))
            if not page.more or not page.entries:
                return

    def _take_entry(self, entry: RosterEntry) -> NodeId:
        """Believe a hub's entry as far as the node itself signed it; the entry's id, or '' when it is refused."""
        try:
            record = decode_record(entry.signed, self._wall())
            check_load(entry.load)
        except BadRecord as error:
            logger.warning("refused an entry of a hub's roster: %s", error)
            return NodeId("")
        if record.id != self._this:
            silence = None if entry.silence is None else max(entry.silence, 0.0)
            self._note(self._census.hear_of(record, entry.signed, entry.load, silence, self._clock()))
        return record.id

    async def _page(self, request: RosterRequest) -> RosterPage:
        now = self._clock()
        entries: list[RosterEntry] = []
        size = 0
        for node in sorted(node for node in self._census.known if node > request.after):
            known = self._census.known[node]
            size += len(known.signed) + 64 * (len(known.load.active) + len(known.load.waiting)) + 64
            if entries and size > MAX_PAGE_BYTES:
                return RosterPage(entries, more=True)
            entries.append(RosterEntry(known.signed, known.load, now - known.heard if known.alive else None))
        return RosterPage(entries, more=False)


def _call_all(callbacks: Sequence[Callable[[T], None]], argument: T) -> None:
    for callback in list(callbacks):
        try:
            callback(argument)
        except Exception:
            logger.exception("a roster callback failed")
