"""The peers of one pull: who is there, what each has, how each did."""

import logging
import random
from collections.abc import Callable, Sequence

from felloe.catalog.transfer.bans import Bans
from felloe.catalog.transfer.peers import Peer
from felloe.catalog.transfer.rules import (
    MOST_PEERS,
    SLOW_REST_SECONDS,
    Holder,
    Pace,
    most_of_peer,
    pause_seconds,
    slow_peers,
    stripe_of,
)
from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId

_LOG = logging.getLogger(__name__)
_FADING = 0.8


class Companion:
    """One peer as this pull knows it. `have`: its chunks of the file that comes now; `is_fetching`: not all of it."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.have = 0
        self.is_whole = False
        self.is_being_looked_at = False
        self.is_fetching = False
        self.looked_at = float("-inf")
        self.in_flight = 0
        self.failures = 0
        self.away_until = float("-inf")
        self.slow_until = float("-inf")
        self.brought = self.busy = 0.0
        self._chunk_seconds = 0.0

    @property
    def pace(self) -> Pace:
        """What it brought lately."""
        return Pace(self.brought / self.busy if self.busy else 0.0, self.busy)

    def forget_file(self) -> None:
        """Another file comes now."""
        self.have, self.looked_at = 0, float("-inf")
        self.is_whole = self.is_fetching = False

    def looked(self, have: int, count: int, now: float) -> None:
        """It said which of the `count` chunks it has."""
        everything = (1 << count) - 1
        self.have, self.looked_at = have & everything, now
        self.is_whole = self.have == everything
        self.is_fetching = not self.is_whole

    def failed(self, error: Exception, now: float) -> None:
        """Leave it alone for a while."""
        self.failures += 1
        self.away_until = now + pause_seconds(self.failures)
        self.looked_at = float("-inf")
        self.is_whole = self.is_fetching = False
        _LOG.debug("%s: %s", self.peer.node, error)
        if isinstance(error, FelloeError) and error.code == "not_found":
            self.have = 0

    @property
    def most(self) -> int:
        """How many chunks may be asked of it at once."""
        return most_of_peer(self._chunk_seconds)

    def brought_chunk(self, seconds: float) -> None:
        """A chunk came that took so long, beside the others that are on their way from it."""
        each = seconds / max(1, self.in_flight)
        self._chunk_seconds = each if not self._chunk_seconds else 0.5 * (self._chunk_seconds + each)

    def succeeded(self) -> None:
        """It is as it should be."""
        self.failures = 0


class Circle:
    """`peers` names who may be asked now; `own` is this node. `now` in seconds of one steady clock."""

    def __init__(self, peers: Callable[[], Sequence[Peer]], bans: Bans, own: NodeId, chance: random.Random) -> None:
        self._peers = peers
        self._bans = bans
        self._own = own
        self._chance = chance
        self._known: dict[NodeId, Companion] = {}
        self._ticked_at: float | None = None

    def renew(self, now: float) -> None:
        """See who came and who went, and who is slow."""
        asked = [peer for peer in self._peers() if peer.node != self._own]
        there = {peer.node: peer for peer in asked if not self._bans.is_banned(peer.node)}
        self._known = {node: known for node, known in self._known.items() if node in there}
        for node, companion in self._known.items():
            companion.peer = there[node]
        new = [node for node in there if node not in self._known]
        self._chance.shuffle(new)
        for node in new[: max(0, MOST_PEERS - len(self._known))]:
            self._known[node] = Companion(there[node])
        self._judge(now)

    def find(self, node: NodeId) -> Companion | None:
        """The peer, if it is still there."""
        return self._known.get(node)

    def begin_file(self) -> None:
        """Another file comes now."""
        for companion in self._known.values():
            companion.forget_file()

    def askable(self, now: float) -> list[Companion]:
        """Who may be asked at all now."""
        return [
            companion
            for node, companion in self._known.items()
            if companion.away_until <= now and not self._bans.is_banned(node)
        ]

    def holders(self, now: float) -> list[Holder]:
        """Those who may be asked for chunks, as the rules see them."""
        return [
            Holder(
                companion.peer.node,
                companion.have,
                in_flight=companion.in_flight,
                rate=companion.pace.rate,
                is_whole=companion.is_whole,
                is_slow=companion.slow_until > now,
                most=companion.most,
            )
            for companion in self.askable(now)
            if companion.have
        ]

    def to_look_at(self, now: float, pause: float) -> list[Companion]:
        """Those whose chunks have to be asked for again: not those who have all."""
        return [
            companion
            for companion in self.askable(now)
            if not companion.is_whole and not companion.is_being_looked_at and companion.looked_at + pause <= now
        ]

    def stripe(self, count: int) -> int:
        """The chunks of `count` that this node fetches first from those who have all: others fetch, too."""
        parts = [node for node, companion in self._known.items() if companion.is_fetching]
        return stripe_of(self._own, parts, count)

    async def lied(self, node: NodeId, what: str) -> None:
        """Ask a peer no more."""
        await self._bans.lied(node, what)

    def _judge(self, now: float) -> None:
        passed = 0.0 if self._ticked_at is None else now - self._ticked_at
        self._ticked_at = now
        for companion in self._known.values():
            if companion.in_flight:
                companion.busy += passed
        for node in slow_peers({node: companion.pace for node, companion in self._known.items()}):
            companion = self._known[node]
            companion.slow_until = now + SLOW_REST_SECONDS
            companion.brought = companion.busy = 0.0
        fading = _FADING**passed
        for companion in self._known.values():
            companion.brought, companion.busy = companion.brought * fading, companion.busy * fading
