"""The one owner of the roster: what this node says about itself, and what it believes of the others."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

from felloe.domain.ids import NodeId
from felloe.domain.roster import Load, NodeRecord, Roster
from felloe.mesh.connection import Connection
from felloe.mesh.doubles import ENOUGH, Doubles
from felloe.mesh.roster_hearsay import Hearsay
from felloe.mesh.roster_listening import Listening
from felloe.mesh.roster_snapshots import Snapshots
from felloe.mesh.roster_speaking import RECORD_SECONDS, Speaking
from felloe.mesh.roster_sync import SERVICE, STANDINGS, RosterSync, page_of
from felloe.mesh.roster_telling import Telling
from felloe.mesh.roster_wire import (
    BadRecord,
    Heartbeat,
    RosterPage,
    RosterRequest,
    StandingsRequest,
    decode_digest,
    decode_heartbeat,
    decode_record,
    parse_id,
)
from felloe.mesh.rules import Census, Heard, Pulse
from felloe.mesh.services import HubClient, HubServices
from felloe.mesh.session import Message
from felloe.mesh.telling_rules import CROWD

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 0.5
BATCH_SECONDS = 0.05
INTRODUCTIONS_PER_SECOND = 1000

T = TypeVar("T")


class RosterService:
    """Publishes this node's record and load, keeps the snapshot of all members. Implements `Rosters`.

    `sign` signs with the node key. `clock` is monotonic; `wall` is Unix time, asked once: records are issued by the
    monotonic clock from then on, so that a clock that is set harms nobody. Both in seconds. From `crowd` members on
    hubs tell the others how everybody stands, and only they listen to all.
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
        crowd: int = CROWD,
    ) -> None:
        self._connection = connection
        self._this = record.id
        self._clock = clock
        self._random = random or Random()  # noqa: S311  only spreads messages
        self._doubles = Doubles(record.started_at)
        self._banned: frozenset[NodeId] = frozenset()
        self._down_since: float | None = clock() - RECORD_SECONDS
        self._census = Census(clock())
        self._snapshots = Snapshots(self._this, self._census, clock, wall)
        self._hearsay = Hearsay(
            self._this,
            self._census,
            self._snapshots,
            note=self._note,
            want=self._want,
            clock=clock,
        )
        self._sync = RosterSync(HubClient(connection), self._hearsay, clock=clock, random=self._random)
        self._listening = Listening(connection, self._on_message, self._on_digest, clock)
        self._telling = Telling(connection, self._census, clock=clock, crowd=crowd)
        self._speaking = Speaking(
            connection,
            record,
            sign=sign,
            known=lambda: len(self._census.known),
            clock=clock,
            wall=wall,
            random=self._random,
        )
        self._batch: asyncio.TimerHandle | None = None
        self._introduction: asyncio.TimerHandle | None = None
        self._change_callbacks: list[Callable[[Roster], None]] = []
        self._loss_callbacks: list[Callable[[NodeId], None]] = []
        self._move_callbacks: list[Callable[[NodeId], None]] = []
        self._double_callbacks: list[Callable[[NodeRecord], None]] = []
        self._settle = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._hear_self()
        connection.on_up(self._line_up)
        connection.on_down(self._line_down)

    def snapshot(self) -> Roster:
        """The newest snapshot; `seen_at` in it is at most about a second old."""
        return self._snapshots.newest()

    def on_change(self, callback: Callable[[Roster], None]) -> None:
        """Call `callback` in the event loop after each change of a record, a load, or who is alive."""
        self._change_callbacks.append(callback)

    def on_loss(self, callback: Callable[[NodeId], None]) -> None:
        """Call `callback` at once when a node dies or is seen to have started anew: its answers will not come."""
        self._loss_callbacks.append(callback)

    def on_move(self, callback: Callable[[NodeId], None]) -> None:
        """Call `callback` at once when a living node's line was cut and stands again: what it was sending is lost."""
        self._move_callbacks.append(callback)

    def on_double(self, callback: Callable[[NodeRecord], None]) -> None:
        """Call `callback` with the other's record whenever somebody else is heard who runs with this node's key.

        Both hear of each other within moments of being connected; `started_at` tells who was there first.
        """
        self._double_callbacks.append(callback)

    def ban(self, nodes: frozenset[NodeId]) -> None:
        """Take nothing from these nodes from now on, and forget what they said; others than these may speak again."""
        self._banned = self._hearsay.banned = nodes - {self._this}
        self._note(self._census.drop(self._banned))

    @property
    def banned(self) -> frozenset[NodeId]:
        """The nodes that were removed from the network."""
        return self._banned

    def set_record(self, record: NodeRecord) -> None:
        """Say this about this node from now on; `issued_at` is filled in. Raises `bad_config` when it is too large."""
        self._speaking.set_record(record)
        self._hear_self()

    def set_load(self, read: Callable[[], Load]) -> None:
        """This node is as busy as `read` tells; call again when that may have changed.

        `read` is asked when the network is told, at most every 50 ms, so a call costs nothing for each request.
        """
        if self._speaking.set_load(read):
            self._publish_soon()

    async def start(self) -> None:
        """Listen to the others, speak, and ask a hub who is there."""
        await self._listening.start()
        self._tasks = [
            asyncio.create_task(self._speaking.run(self._refresh_load)),
            asyncio.create_task(self._sweep_for_ever()),
            asyncio.create_task(self._tell_all_for_ever()),
            asyncio.create_task(self._sync.run()),
        ]
        if self._connection.is_up:
            self._line_up()

    async def serve(self, services: HubServices) -> None:
        """On a hub: answer newcomers with all members, page by page."""
        await services.serve(SERVICE, RosterRequest, self._page)
        await services.serve(STANDINGS, StandingsRequest, self._telling.page)

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
        await self._listening.close()

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
        if node in self._banned:
            return Heard()
        if node == self._this:
            self._hear_own_id(second, data)
            return Heard()
        now = self._clock()
        if second == "load":
            return self._hear_load(node, decode_heartbeat(data), now)
        if second != "record":
            return Heard()
        if self._census.has(node, data):
            return self._census.hear_load(node, self._census.known[node].load, now)
        record = decode_record(data)
        if record.id != node:
            raise BadRecord("the record is another node's")
        is_new = node not in self._census.known
        heard = self._census.hear_record(record, data, now)
        if "hub" in record.roles and (is_new or node in heard.lost):
            self._introduce()
        return heard

    def _hear_load(self, node: NodeId, heartbeat: Heartbeat, now: float) -> Heard:
        pulse = Pulse(heartbeat.started_at, heartbeat.session)
        known = self._census.known.get(node)
        session = 0 if known is None else known.session
        if self._census.lacks(node, heartbeat.issued_at, pulse):
            self._sync.want(node)
        self._snapshots.seen(node)
        heard = self._census.hear_load(node, heartbeat.load, now, pulse)
        known = self._census.known.get(node)
        if known is not None and known.session != session:
            self._telling.note((node,))
        return heard

    def _hear_own_id(self, what: str, data: bytes) -> None:
        if what != "record" or data == self._speaking.signed:
            return
        record = decode_record(data)
        records = self._doubles.hear(record) if record.id == self._this else 0
        if 0 < records <= ENOUGH:
            # The other one hears this, and says its own once more: so both are certain at once.
            self.set_record(self._speaking.record)
        if records >= ENOUGH:
            _call_all(self._double_callbacks, record)

    def _hear_gone(self, node: NodeId) -> Heard:
        if node != self._this:
            return self._census.hear_gone(node, self._clock())
        # A hub saw an earlier connection of this node close; tell everybody that it lives.
        self._speaking.say_load()
        return Heard()

    def _on_digest(self, message: Message) -> None:
        try:
            hub = parse_id(message.subject.partition(".")[2])
            if hub in self._banned or hub == self._this:
                return
            if self._speaking.is_hub:
                self._telling.heard(hub)
                return
            digest = decode_digest(message.data)
            self._listening.told()
            if self._listening.to_all:
                self._settle.set()
            self._census.judges_anew(self._clock())
            self._hearsay.take_digest(digest)
        except BadRecord as error:
            logger.warning("refused %s: %s", message.subject[:80], error)

    def _introduce(self) -> None:
        """A hub has just started and must know everybody, to tell newcomers; not all speak at the same moment."""
        crowd = len(self._census.known) / INTRODUCTIONS_PER_SECOND
        self._introduction = asyncio.get_running_loop().call_later(
            self._random.random() * crowd, self._speaking.say_record
        )

    async def _sweep_for_ever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_SECONDS):
                    await self._settle.wait()
            self._settle.clear()
            now = self._clock()
            self._refresh_load()
            self._census.hear_load(self._this, self._speaking.load, now)
            self._note(self._census.sweep(now))
            if await self._listening.settle(is_hub=self._speaking.is_hub):
                self._census.judges_anew(self._clock())

    # What the snapshot shows

    def _note(self, heard: Heard) -> None:
        self._telling.note(heard.moved)
        if heard.changed:
            self._telling.note(heard.changed)
            self._snapshots.changed(heard.changed)
            if heard.lost:
                self._publish_snapshot()
            else:
                self._publish_soon()
        for node in heard.lost:
            _call_all(self._loss_callbacks, node)
        for node in heard.moved:
            _call_all(self._move_callbacks, node)

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
        _call_all(self._change_callbacks, self._snapshots.build())

    def _refresh_load(self) -> None:
        """Take up how busy this node is, when that has changed."""
        if self._speaking.refresh_load():
            changed = self._census.hear_load(self._this, self._speaking.load, self._clock()).changed
            self._telling.note(changed)
            self._snapshots.changed(changed)

    def _hear_self(self) -> None:
        """This node is a member like the others, as it says of itself."""
        self._note(self._census.hear_record(self._speaking.record, self._speaking.signed, self._clock()))

    # The line and the hubs

    def _line_up(self) -> None:
        self._speaking.begin_session()
        self._hear_self()
        self._listening.line_up()
        if self._listening.was_told and not self._speaking.is_hub:
            self._sync.want_standings()
        elif self._down_since is not None and self._clock() - self._down_since >= RECORD_SECONDS:
            self._sync.want_all()
        self._down_since = None

    def _line_down(self) -> None:
        self._listening.line_down()
        self._down_since = self._clock()

    async def _tell_all_for_ever(self) -> None:
        """On a hub of a large network: tell everybody how all stand."""
        while True:
            await self._telling.wait()
            if self._speaking.is_hub:
                await self._telling.tell()
            else:
                self._telling.cease()

    def _want(self, node: NodeId) -> None:
        self._sync.want(node)

    async def _page(self, request: RosterRequest) -> RosterPage:
        return page_of(self._census, request, self._clock())


def _call_all(callbacks: Sequence[Callable[[T], None]], argument: T) -> None:
    for callback in list(callbacks):
        try:
            callback(argument)
        except Exception:
            logger.exception("a roster callback failed")
