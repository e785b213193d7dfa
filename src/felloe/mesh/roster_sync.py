"""What a node asks a hub about the others, because it has not heard it from themselves; and what the hub answers.

A newcomer asks for everybody. Later a node asks only for those whose heartbeats name a record that it lacks, and not
again soon for the same one: what nobody can give it, or what it refused, must not make it ask for ever. A node that
does not listen to the others asks, when its line stands again, how they stand.
"""

import asyncio
import logging
from collections.abc import Callable
from random import Random
from typing import Protocol

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.mesh.roster_wire import (
    MAX_ASKED_FOR,
    MAX_PAGE_BYTES,
    RosterEntry,
    RosterPage,
    RosterRequest,
    StandingsPage,
    StandingsRequest,
)
from felloe.mesh.rules import MAX_MEMBERS, Census
from felloe.mesh.services import HubClient

logger = logging.getLogger(__name__)

SERVICE = "roster"
STANDINGS = "standings"
SYNC_SECONDS = 2.0
LONGEST_SYNC_SECONDS = 30.0
AGAIN_SECONDS = 10.0
MAX_PAGES = 10_000


class Answers(Protocol):
    """Who takes what a hub answers."""

    def take_entry(self, entry: RosterEntry) -> NodeId:
        """An entry of a page of records; its id, '' when it was refused."""
        ...

    def take_standings(self, page: StandingsPage) -> None:
        """A page of standings."""
        ...


class RosterSync:
    """Asks until it is answered."""

    def __init__(self, hubs: HubClient, answers: Answers, *, clock: Callable[[], float], random: Random) -> None:
        self._hubs = hubs
        self._answers = answers
        self._clock = clock
        self._random = random
        self._wake = asyncio.Event()
        self._wants_all = False
        self._wants_standings = False
        self._lacking: set[NodeId] = set()
        self._asked: dict[NodeId, float] = {}

    def want_all(self) -> None:
        """Ask for everybody."""
        self._wants_all = True
        self._wake.set()

    def want_standings(self) -> None:
        """Ask how everybody stands."""
        self._wants_standings = True
        self._wake.set()

    def want(self, node: NodeId) -> None:
        """Ask for one node's record, unless that was done a moment ago."""
        now = self._clock()
        if now - self._asked.get(node, -AGAIN_SECONDS) < AGAIN_SECONDS:
            return
        if len(self._asked) >= MAX_MEMBERS:
            self._asked = {known: at for known, at in self._asked.items() if now - at < AGAIN_SECONDS}
        if len(self._asked) < MAX_MEMBERS:
            self._asked[node] = now
            self._lacking.add(node)
            self._wake.set()

    async def run(self) -> None:
        """Ask whenever something is wanted, again and again while no hub answers."""
        pause = SYNC_SECONDS
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._ask()
                pause = SYNC_SECONDS
            except FelloeError as error:
                logger.debug("no roster from a hub: %s", error.code)
                self._wake.set()
                pause = min(LONGEST_SYNC_SECONDS, 2 * pause)
            await asyncio.sleep(pause * (0.5 + self._random.random()))

    async def _ask(self) -> None:
        if self._wants_all:
            await self._ask_for(())
            self._wants_all = False
            self._lacking.clear()
        if self._wants_standings:
            await self._ask_for_standings()
            self._wants_standings = False
        while self._lacking:
            some = tuple(sorted(self._lacking))[:MAX_ASKED_FOR]
            await self._ask_for(some)
            self._lacking.difference_update(some)

    async def _ask_for(self, some: tuple[NodeId, ...]) -> None:
        after = ""
        for _ in range(MAX_PAGES):
            page = await self._hubs.ask(SERVICE, RosterRequest(after, some), RosterPage)
            before = after
            for entry in page.entries:
                after = max(after, self._answers.take_entry(entry))
            if not page.more or after == before:
                return

    async def _ask_for_standings(self) -> None:
        after = ""
        for _ in range(MAX_PAGES):
            page = await self._hubs.ask(STANDINGS, StandingsRequest(after), StandingsPage)
            self._answers.take_standings(page)
            before, after = after, max((standing.id for standing in page.standings), default=after)
            if not page.more or after <= before:
                return


def page_of(census: Census, request: RosterRequest, now: float) -> RosterPage:
    """A hub's answer: those asked for, or everybody, whose ids come after `request.after`."""
    wanted = {NodeId(node) for node in request.only[:MAX_ASKED_FOR]} if request.only else census.known
    entries: list[RosterEntry] = []
    size = 0
    for node in sorted(node for node in wanted if node > request.after):
        known = census.known.get(node)
        if known is None:
            continue
        size += len(known.signed) + 64 * (len(known.load.active) + len(known.load.waiting)) + 64
        if entries and size > MAX_PAGE_BYTES:
            return RosterPage(entries, more=True)
        entries.append(RosterEntry(known.signed, known.load, now - known.heard if known.alive else None))
    return RosterPage(entries, more=False)
