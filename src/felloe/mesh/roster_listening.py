"""Whom a node listens to: to everybody, or, in a large network, to the hubs, who tell it how all others stand."""

from collections.abc import Callable

from felloe.domain.ids import NodeId
from felloe.mesh.connection import Connection
from felloe.mesh.permissions import DIGESTS, GONE, LOADS, RECORDS, roster_gone, roster_record
from felloe.mesh.session import Handler, Subscription
from felloe.mesh.telling_rules import listens


class Listening:
    """Owns the subscriptions. `clock` is monotonic, in seconds."""

    def __init__(
        self, connection: Connection, on_message: Handler, on_digest: Handler, clock: Callable[[], float]
    ) -> None:
        self._connection = connection
        self._this: NodeId = connection.node
        self._on_message = on_message
        self._on_digest = on_digest
        self._clock = clock
        self._last_told: float | None = None
        self._up_since: float | None = None
        self._digests: Subscription | None = None
        self._own: list[Subscription] = []
        self.to_all = True

    @property
    def was_told(self) -> bool:
        """Whether hubs have ever told how the others stand."""
        return self._last_told is not None

    def told(self) -> None:
        """A hub told how others stand."""
        self._last_told = self._clock()

    def line_up(self) -> None:
        """The line stands."""
        self._up_since = self._clock()

    def line_down(self) -> None:
        """The line is lost."""
        self._up_since = None

    async def start(self) -> None:
        """Listen, at first to everybody."""
        self._digests = await self._connection.subscribe(DIGESTS, self._on_digest)
        await self._subscribe(GONE, RECORDS, LOADS)

    async def settle(self, *, is_hub: bool) -> bool:
        """Listen to whom this node must listen now; whether it listens to all from now on and did not before."""
        to_all = is_hub or listens(
            self._clock(), last_told=self._last_told, up_since=self._up_since, listens_now=self.to_all
        )
        if to_all == self.to_all:
            return False
        self.to_all = to_all
        before, self._own = self._own, []
        # A copy of this node's home shows itself by its records; a hub that wrongly calls this node gone is answered.
        own = (roster_record(self._this), roster_gone(self._this))
        await self._subscribe(*((GONE, RECORDS, LOADS) if to_all else own))
        for subscription in before:
            await subscription.close()
        return to_all

    async def close(self) -> None:
        """Listen to nobody."""
        for subscription in (self._digests, *self._own):
            if subscription is not None:
                await subscription.close()
        self._digests, self._own = None, []

    async def _subscribe(self, *subjects: str) -> None:
        self._own += [await self._connection.subscribe(subject, self._on_message) for subject in subjects]
