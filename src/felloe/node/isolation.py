"""A hub that serves this node well but is cut off from most other hubs: the node leaves it for one that is not.

Nothing else would tell: the connection is sound, and only the nodes on the other side seem dead.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

from felloe.domain.errors import FelloeError
from felloe.domain.roster import Roster
from felloe.hubs.addresses import peer_addresses
from felloe.hubs.records import Hub, HubSet
from felloe.mesh.connection import Connection
from felloe.mesh.join_client import ask_instance
from felloe.mesh.join_token import parse_address
from felloe.mesh.trust import Trust

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0
_LONGEST_PATIENCE = 300.0
_CALM_SECONDS = 30.0
_LOOK_SECONDS = 1.0
_ASK_SECONDS = 3.0


def unheard(hubs: HubSet, roster: Roster) -> tuple[Hub, ...]:
    """The hubs that this node does not hear, when it hears fewer than half of them; else none.

    Who hears half of the hubs or more has nothing to gain: the other side has no more of them.
    """
    members = roster.members
    missing = tuple(hub for hub in hubs.hubs if hub.id not in members or not members[hub.id].alive)
    return missing if 2 * (len(hubs.hubs) - len(missing)) < len(hubs.hubs) else ()


class Isolation:
    """Looks once a second whether most hubs are out of hearing, and leaves when one of them answers another way.

    `hubs` gives None where there is nothing to leave: on a hub, or before the hubs are known. `answers` asks a hub over
    HTTPS. Each time that leaving was tried in vain, the next try comes later.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        hubs: Callable[[], HubSet | None],
        roster: Callable[[], Roster],
        answers: Callable[[Hub], Awaitable[bool]],
        clock: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._hubs = hubs
        self._roster = roster
        self._answers = answers
        self._clock = clock
        self._patience = PATIENCE_SECONDS
        self._since = clock()
        self._trouble = float("-inf")

    async def run(self) -> NoReturn:
        """Look for ever."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self.look()
            except Exception:
                logger.exception("looking for cut off hubs failed")

    async def look(self) -> None:
        """Leave the connected hub when most others have long been out of hearing and one of them answers."""
        now = self._clock()
        missing = self._missing()
        if not missing:
            self._since = now
            if now - self._trouble > _CALM_SECONDS:
                self._patience = PATIENCE_SECONDS
            return
        self._trouble = now
        if now - self._since < self._patience:
            return
        if await self._any_answers(missing):
            logger.warning("the hub at %s is cut off from most others: leaving it", self._connection.url)
            self._connection.redial(elsewhere=True)
        self._since, self._patience = self._clock(), min(2 * self._patience, _LONGEST_PATIENCE)

    def _missing(self) -> tuple[Hub, ...]:
        hubs = self._hubs()
        return unheard(hubs, self._roster()) if hubs is not None and self._connection.is_up else ()

    async def _any_answers(self, hubs: Sequence[Hub]) -> bool:
        return any(await asyncio.gather(*(self._answers(hub) for hub in hubs)))


async def answers_over_https(hub: Hub, trust: Trust) -> bool:
    """Whether this hub's peer port answers in a few seconds, at any of its addresses, with the hub's own key."""

    async def ask(address: str) -> bool:
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                return (await ask_instance(parse_address(address), trust, now=time.time)).node == hub.id
        except (FelloeError, ValueError, TimeoutError):
            return False

    return any(await asyncio.gather(*(ask(address) for address in peer_addresses(hub.endpoints))))
