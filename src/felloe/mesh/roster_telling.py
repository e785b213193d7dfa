"""On a hub of a large network: tells everybody, in digests, how all members stand and what new records they published.

The hubs share the members among them. Besides what is new, each tells of all members in turn: that heals whatever a
node, or another hub, has missed.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Load
from felloe.mesh.connection import Connection
from felloe.mesh.permissions import digest as digest_subject
from felloe.mesh.roster_wire import MAX_PAGE_BYTES, Digest, Standing, StandingsPage, StandingsRequest
from felloe.mesh.rules import Census, Known
from felloe.mesh.telling_rules import FRESH_SECONDS, PASS_SECONDS, TELL_SECONDS, TOLD_SECONDS, teller_of, tells

logger = logging.getLogger(__name__)

MAX_CHANGES = 1024
MAX_CHANGES_BYTES = 128 * 1024
MAX_NEWS_BYTES = 32 * 1024
FEW = 16
IN_PASSING = 16
PAGE_STANDINGS = 2048


class _Summary(NamedTuple):
    started_at: float
    changed_at: float
    session: int
    alive: bool
    load: Load


class Telling:
    """Gathers what is new, and makes digests of it. `clock` is monotonic, in seconds.

    It tells in networks of at least `crowd` members.
    """

    def __init__(self, connection: Connection, census: Census, *, clock: Callable[[], float], crowd: int) -> None:
        self._connection = connection
        self._this = connection.node
        self._census = census
        self._clock = clock
        self._crowd = crowd
        self._tells = False
        self._something_new = asyncio.Event()
        self._others: dict[NodeId, float] = {}
        self._new: dict[NodeId, None] = {}
        self._news: dict[NodeId, None] = {}
        self._summaries: dict[NodeId, _Summary] = {}
        self._circle: list[NodeId] = []
        self._passed_at = 0.0

    def note(self, nodes: Iterable[NodeId]) -> None:
        """Something about these members may be new."""
        if self._tells:
            self._new.update(dict.fromkeys(nodes))
            if self._new:
                self._something_new.set()

    def heard(self, hub: NodeId) -> None:
        """Another hub tells, too."""
        self._others[hub] = self._clock()

    def cease(self) -> None:
        """This node is no hub (any more)."""
        self._tells = False
        self._new.clear()
        self._news.clear()
        self._summaries.clear()

    async def wait(self) -> None:
        """Return when there may be something to tell: what is new is told at once, but not again at once."""
        await asyncio.sleep(TELL_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PASS_SECONDS):
                await self._something_new.wait()
        self._something_new.clear()

    async def tell(self) -> None:
        """Tell what has gathered, if this network is large."""
        was, self._tells = self._tells, tells(len(self._census.known), self._crowd, told_before=self._tells)
        if not self._tells:
            self.cease()
            return
        if not was:
            self.note(self._census.known)
        digest = self.next_digest(self._clock())
        if self._new or self._news:
            self._something_new.set()
        if digest is not None:
            try:
                await self._connection.publish(digest_subject(self._this), msgspec.msgpack.encode(digest))
            except FelloeError as error:
                logger.info("could not tell how the members stand: %s", error.code)

    def next_digest(self, now: float) -> Digest | None:
        """What is to be told now; None when there is nothing, and something was told a moment ago."""
        self._others = {hub: heard for hub, heard in self._others.items() if now - heard < TOLD_SECONDS}
        tellers = (self._this, *self._others)
        changes: list[Standing] = []
        size = 0
        for node in list(self._new):
            if len(changes) >= MAX_CHANGES or size >= MAX_CHANGES_BYTES:
                break
            del self._new[node]
            known = self._census.known.get(node)
            if known is None:
                self._summaries.pop(node, None)
            elif self._is_new(known, node) and teller_of(node, tellers) == self._this and node not in self._news:
                standing = standing_of(known, now)
                size += _size(standing)
                changes.append(standing)
        news = self._take_news(changes, now)
        in_passing: list[Standing] = []
        if now - self._passed_at >= PASS_SECONDS:
            self._passed_at = now
            in_passing = self._pass(now)
        if not changes and not news and not in_passing:
            return None
        return Digest(changes, in_passing, news)

    async def page(self, request: StandingsRequest) -> StandingsPage:
        """How all members stand, page by page."""
        now = self._clock()
        standings: list[Standing] = []
        size = 0
        for node in sorted(node for node in self._census.known if node > request.after):
            standing = standing_of(self._census.known[node], now)
            size += _size(standing)
            if standings and (size > MAX_PAGE_BYTES or len(standings) >= PAGE_STANDINGS):
                return StandingsPage(standings, more=True)
            standings.append(standing)
        return StandingsPage(standings, more=False)

    def _is_new(self, known: Known, node: NodeId) -> bool:
        """Whether others must hear of it; what is only issued anew, or has another amount of free memory, is old."""
        before = self._summaries.get(node)
        record = known.record
        summary = _Summary(record.started_at, known.changed_at, known.session, known.alive, known.load)
        if summary == before:
            return False
        self._summaries[node] = summary
        if before is None:
            has_news = record.issued_at - known.changed_at < FRESH_SECONDS
        else:
            has_news = (summary.started_at, summary.changed_at) != (before.started_at, before.changed_at)
        # A node that is back has issued its record anew, so that it is asked again; of many at once that is too much.
        is_back = before is not None and known.alive and (not before.alive or before.session != known.session)
        if has_news or (is_back and len(self._news) < FEW):
            self._news[node] = None
        return True

    def _take_news(self, changes: list[Standing], now: float) -> list[bytes]:
        """The records that are due, as many as may go at once; how their nodes stand is told with them."""
        tellers = (self._this, *self._others)
        news: list[bytes] = []
        size = 0
        for node in list(self._news):
            if size >= MAX_NEWS_BYTES:
                break
            del self._news[node]
            known = self._census.known.get(node)
            if known is not None and teller_of(node, tellers) == self._this:
                news.append(known.signed)
                changes.append(standing_of(known, now))
                size += len(known.signed)
        return news

    def _pass(self, now: float) -> list[Standing]:
        """The next members in turn."""
        if not self._circle:
            self._circle = sorted(self._census.known, reverse=True)
        some, self._circle = self._circle[-IN_PASSING:], self._circle[:-IN_PASSING]
        found = (self._census.known.get(node) for node in some)
        return [standing_of(known, now) for known in found if known is not None]


def standing_of(known: Known, now: float) -> Standing:
    """What a hub tells about a member."""
    return Standing(
        known.record.id,
        known.record.started_at,
        known.changed_at,
        known.session,
        known.alive,
        now - (known.heard if known.alive else known.died),
        known.load,
    )


def _size(standing: Standing) -> int:
    return 64 + 64 * (len(standing.load.active) + len(standing.load.waiting))
