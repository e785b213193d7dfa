"""How far away the other members are, measured at little cost: the time of a small question over the mesh, now and
then, and the speed at which models came from them.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager

from msgspec import Struct, field

from felloe import __version__
from felloe.console.hardware_messages import LinkRow
from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Roster
from felloe.mesh.connection import Connection
from felloe.mesh.fetching import FetchQuestion, fetch_piece
from felloe.routing.rules import spoken_versions

ASK_SECONDS = 15.0
"""One member is asked at a time, whichever was asked longest ago."""

AGAIN_SECONDS = 300.0
_SAMPLES = 4
_LEAST_BYTES, _LEAST_SECONDS = 8 << 20, 0.05
_NEWEST_WEIGHT = 0.5
_QUESTION = FetchQuestion("/catalog", 0, 1)
_NO_ANSWERS = ("network_unreachable", "deadline_exceeded", "overloaded", "body_too_large", "internal")

Ask = Callable[[NodeId], Awaitable[object]]


class _Link(Struct):
    """`reading` reads are under way since `began`; `seconds` and `bytes` are of those that ended and are not yet told.

    All times by the steady clock, `measured_at` by that of people.
    """

    asked_at: float = float("-inf")
    measured_at: float = 0.0
    round_trips: deque[float] = field(default_factory=lambda: deque[float](maxlen=_SAMPLES))
    rate: float = 0.0
    reading: int = 0
    began: float = 0.0
    seconds: float = 0.0
    bytes: int = 0


class Links:
    """Owns what was measured; forgets members that are gone. `ask` puts a small question to a member."""

    def __init__(
        self,
        ask: Ask,
        roster: Callable[[], Roster],
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ask = ask
        self._roster = roster
        self._clock = clock
        self._now = now
        self._sleep = sleep
        self._links: dict[NodeId, _Link] = {}

    def rows(self) -> tuple[LinkRow, ...]:
        """What is known, by name. The least of the last few round trips counts: the others waited for something."""
        members = self._roster().members
        found = [
            LinkRow(
                node=node,
                name=members[node].record.name,
                round_trip_seconds=min(link.round_trips, default=0.0),
                bytes_per_second=link.rate,
                measured_at=link.measured_at,
            )
            for node, link in self._links.items()
            if node in members and link.measured_at
        ]
        return tuple(sorted(found, key=lambda row: (row.name, row.node)))

    @contextmanager
    def reading(self, node: NodeId) -> Generator[Callable[[int], None]]:
        """Around a read from a member; tell the bytes as they come. Reads at the same time count together."""
        link = self._links.setdefault(node, _Link())
        if not link.reading:
            link.began = self._clock()
        link.reading += 1

        def came(size: int) -> None:
            link.bytes += size

        try:
            yield came
        finally:
            link.reading -= 1
            if not link.reading:
                link.seconds += self._clock() - link.began
                self._sum_up(link)

    async def run(self) -> None:
        """Ask one member after the other, until cancelled."""
        while True:
            await self._sleep(ASK_SECONDS)
            self._forget_gone()
            node = self._next()
            if node is not None:
                await self._measure(node)

    async def _measure(self, node: NodeId) -> None:
        link = self._links.setdefault(node, _Link())
        link.asked_at = began = self._clock()
        try:
            await self._ask(node)
        except FelloeError as error:
            # A refusal came back as fast as an answer would have.
            if error.code in _NO_ANSWERS:
                return
        link.round_trips.append(self._clock() - began)
        link.measured_at = self._now()

    def _next(self) -> NodeId | None:
        """Whom to ask: of those that live and were not asked lately the one who has waited longest."""
        roster = self._roster()
        spoken, due = spoken_versions(__version__, roster), self._clock() - AGAIN_SECONDS
        waiting = [
            (self._links[node].asked_at if node in self._links else float("-inf"), node)
            for node, member in roster.members.items()
            if node != roster.this and member.alive and member.record.version in spoken
        ]
        asked_at, node = min(waiting, default=(0.0, None))
        return node if asked_at <= due else None

    def _sum_up(self, link: _Link) -> None:
        if link.bytes < _LEAST_BYTES or link.seconds < _LEAST_SECONDS:
            return
        rate = link.bytes / link.seconds
        link.rate = rate if not link.rate else link.rate + _NEWEST_WEIGHT * (rate - link.rate)
        link.measured_at, link.bytes, link.seconds = self._now(), 0, 0.0

    def _forget_gone(self) -> None:
        members = self._roster().members
        for node in [node for node, link in self._links.items() if node not in members and not link.reading]:
            del self._links[node]


def asks_over_mesh(connection: Connection) -> Ask:
    """The question of `Links`: for one byte of what every member has."""

    async def ask(node: NodeId) -> None:
        await fetch_piece(connection, node, _QUESTION)

    return ask
