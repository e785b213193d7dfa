"""Copies of the models that the network serves, so that one of them is left when a machine is lost.

This node looks at the roster every few seconds, and fetches what it is its turn to fetch: one model at a time, only
approved ones, never at the cost of what is here. Owns what it has missed and what has failed.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

import msgspec

from felloe.catalog.sources.progress import PullProgress
from felloe.catalog.store import ModelStore
from felloe.domain.approval import Approvals
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, NodeId
from felloe.domain.plan import DesiredModel, Placement
from felloe.domain.roster import Roster
from felloe.node.converging_rules import pause
from felloe.node.spare_rules import Gap, Spare, due, gap, keepers, must_keep, spares, turn

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0

Fetch = Callable[[ContentId, Callable[[PullProgress], None]], Awaitable[object]]


class SparePorts(msgspec.Struct, frozen=True, kw_only=True):
    """What copies need of the node's other parts. `rests`: nothing is to begin now, for the node is being drained."""

    store: ModelStore
    fetch: Fetch
    approvals: Callable[[], Approvals | None]
    wanted: Callable[[], Sequence[DesiredModel]]
    placements: Callable[[], Sequence[Placement]]
    roster: Callable[[], Roster]
    rests: Callable[[], bool]


class Spares:
    """Sees to it that at least `copies` nodes hold each model that is wanted; 1: nobody does.

    `clock` counts seconds and never goes back.
    """

    def __init__(self, node: NodeId, copies: int, ports: SparePorts, clock: Callable[[], float]) -> None:
        self._node = node
        self._copies = copies
        self._ports = ports
        self._clock = clock
        self._gaps: dict[ContentId, Gap] = {}
        self._failed: dict[ContentId, tuple[int, float]] = {}

    def files(self) -> frozenset[str]:
        """The names in the store of copies that are needed: clean-up keeps off them."""
        if self._copies < 2:
            return frozenset()
        nodes, here = keepers(self._ports.roster()), self._ports.store.contents()
        return frozenset(
            here[content]
            for content, spare in self._spares().items()
            if content in here and must_keep(spare, nodes, self._node, self._copies)
        )

    async def run(self) -> NoReturn:
        """Look and fetch, for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except Exception:
                logger.exception("spare copies were not looked after")

    async def look(self) -> None:
        """Fetch the one model that is most due here, if there is one; a failure is logged, and rests."""
        if self._copies < 2:
            return
        known, nodes, now = self._spares(), keepers(self._ports.roster()), self._clock()
        turns = {
            content: wait
            for content, spare in known.items()
            if (wait := turn(spare, nodes, self._node, self._copies)) is not None
        }
        self._gaps = {
            content: gap(self._gaps.get(content), known[content], nodes, self._copies, now) for content in turns
        }
        self._failed = {content: failure for content, failure in self._failed.items() if content in known}
        may = [content for content in due(turns, self._gaps, now) if now >= self._failed.get(content, (0, now))[1]]
        if not may or self._ports.rests():
            return
        room = await self._ports.store.room()
        chosen = next((known[content] for content in may if known[content].size <= room), None)
        if chosen is None:
            first = known[may[0]]
            self._fail(first, f"it has {first.size} bytes, and there is room for {room} without deleting anything")
            return
        await self._fetch(chosen)

    async def _fetch(self, spare: Spare) -> None:
        logger.info("a spare copy of %s is fetched, as fewer than %d nodes hold it", spare.name, self._copies)
        try:
            came = await self._fetched(spare)
        except FelloeError as error:
            if error.code != "already_pulling":
                self._fail(spare, str(error))
        else:
            self._failed.pop(spare.content, None)
            logger.info("a spare copy of %s %s", spare.name, "is here" if came else "is not needed now")

    async def _fetched(self, spare: Spare) -> bool:
        """Fetch it; False when that was given up, because nobody wants the model any more or the node is drained."""
        work = asyncio.ensure_future(self._ports.fetch(spare.content, lambda _: None))
        try:
            while not work.done() and spare.content in self._spares() and not self._ports.rests():
                await asyncio.wait((work,), timeout=LOOK_SECONDS)
        finally:
            is_done = work.done()
            if not is_done:
                work.cancel()
                await asyncio.wait((work,))
        if is_done:
            await work
        return is_done

    def _fail(self, spare: Spare, why: str) -> None:
        times = self._failed.get(spare.content, (0, 0.0))[0] + 1
        self._failed[spare.content] = (times, self._clock() + pause(times))
        logger.warning("no spare copy of %s, next try in %.0f s: %s", spare.name, pause(times), why)

    def _spares(self) -> dict[ContentId, Spare]:
        approvals = self._ports.approvals()
        return {} if approvals is None else spares(self._ports.wanted(), self._ports.placements(), approvals)
