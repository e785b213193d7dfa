"""What of the state every node may know: hubs tell it when it changes, and answer who asks.

Nodes take the newest value whoever tells it, so a hub that is behind does no harm.
"""

import asyncio
import contextlib
import logging

import msgspec

from felloe.domain.errors import FelloeError
from felloe.hubs.network_state import NetworkState
from felloe.hubs.records import CATALOG, CATALOG_BOOK, GENERATION, HUBS, MEMBER, NEXT, PLAN, SERVING, decode
from felloe.mesh.connection import Connection
from felloe.mesh.membership import ListedMember
from felloe.mesh.permissions import state as state_subject
from felloe.mesh.services import HubServices
from felloe.mesh.state import SERVICE, StateRequest, StateValue

logger = logging.getLogger(__name__)

KEYS = "keys"
TRUST = "trust"
REVOKED = "revoked"
"""Made from the list of members: the ids of those who were removed, as JSON."""

CATALOG_NEWS = "catalog-news"
"""Made from what is kept about the catalogue: only that it has changed, so that who cares asks for it."""

_MADE = (REVOKED, CATALOG_NEWS)
PUBLIC = (KEYS, HUBS, TRUST, REVOKED, NEXT, GENERATION, CATALOG, CATALOG_NEWS, SERVING, PLAN)
ANNOUNCE_SECONDS = 10.0


class Topics:
    """Tells the public part of `state`; everything else stays among the hubs."""

    def __init__(self, state: NetworkState, connection: Connection) -> None:
        self._state = state
        self._connection = connection
        self._due: set[str] = set()
        self._wake = asyncio.Event()
        self._teller: asyncio.Task[None] | None = None
        for topic in PUBLIC:
            if topic not in _MADE:
                state.on_change(topic, self._changed)
        state.on_change(MEMBER, lambda _: self._changed(REVOKED))
        state.on_change(CATALOG_BOOK, lambda _: self._changed(CATALOG_NEWS))

    async def start(self, services: HubServices) -> None:
        """Answer questions and tell changes from now on."""
        await services.serve(SERVICE, StateRequest, self._on_request)
        self._teller = asyncio.create_task(self._tell_for_ever(), name="topics")

    async def close(self) -> None:
        """Stop telling."""
        teller, self._teller = self._teller, None
        if teller is not None:
            teller.cancel()
            await asyncio.wait({teller})

    def value(self, topic: str) -> StateValue:
        """A public topic as this hub knows it; revision 0 when it has no value. Raises `forbidden`."""
        if topic not in PUBLIC:
            raise FelloeError("forbidden", "that is no topic for every node")
        generation = self._state.generations.current.number
        if topic == REVOKED:
            return self._revoked(generation)
        if topic == CATALOG_NEWS:
            return self._catalog_news(generation)
        entry = self._state.entry(topic)
        if entry is None or entry.value is None:
            return StateValue(generation, 0 if entry is None else entry.sequence, None)
        return StateValue(generation, entry.sequence, entry.value)

    def _revoked(self, generation: int) -> StateValue:
        sequence, revoked = 0, list[str]()
        for key, value in self._state.items(MEMBER).items():
            member = decode(value, ListedMember)
            if member.revoked_at and (entry := self._state.entry(key)) is not None:
                sequence = max(sequence, entry.sequence)
                revoked.append(member.id)
        return StateValue(generation, sequence, msgspec.json.encode(sorted(revoked)) if revoked else None)

    def _catalog_news(self, generation: int) -> StateValue:
        entries = (self._state.entry(key) for key in self._state.items(CATALOG_BOOK))
        sequence = max((entry.sequence for entry in entries if entry is not None), default=0)
        return StateValue(generation, sequence, b"%d" % sequence if sequence else None)

    async def _on_request(self, request: StateRequest) -> StateValue:
        return self.value(request.topic)

    def _changed(self, topic: str) -> None:
        if topic in PUBLIC:
            self._due.add(topic)
            self._wake.set()

    async def _tell_for_ever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANNOUNCE_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            due, self._due = self._due, set()
            for topic in sorted(due) or PUBLIC:
                value = self.value(topic)
                # In passing only the newest revision is told: who has missed it asks.
                told = value if due else StateValue(value.epoch, value.revision, None)
                with contextlib.suppress(FelloeError):
                    await self._connection.publish(state_subject(topic), msgspec.msgpack.encode(told))
