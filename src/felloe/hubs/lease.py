"""One leader at a time: holds the lease in the state, or waits for it."""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import NoReturn

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.hubs.lease_rules import (
    JITTER_SECONDS,
    LEASE_SECONDS,
    LONGEST_LEASE_SECONDS,
    Seen,
    free_at,
    lapses_at,
    renewal_seconds,
    renewed,
    see,
    taken,
)
from felloe.hubs.records import LEASE, Lease, State, decode, encode

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 0.5
_LONGEST_PAUSE = 1.0
_BEATS = 2**48


class Leadership:
    """This hub's part in having one leader. `run` does the work; `term` is what a leader's work asks.

    `clock` counts seconds also while the machine sleeps. `wants` says whether this hub may lead. `on_lead` and
    `on_lose` are called in the event loop, with the term and without; what acts asks `term` again each time all the
    same, because a callback comes late in a process that was frozen.
    """

    def __init__(
        self,
        state: State,
        node: NodeId,
        *,
        clock: Callable[[], float],
        wants: Callable[[], bool],
        lease_seconds: float = LEASE_SECONDS,
        random: Callable[[], float] = random.random,
        on_lead: Callable[[int], None] | None = None,
        on_lose: Callable[[], None] | None = None,
    ) -> None:
        if not 0 < lease_seconds <= LONGEST_LEASE_SECONDS:
            raise FelloeError("invalid_value", f"a lease lasts at most {LONGEST_LEASE_SECONDS:.0f} s")
        self._state = state
        self._node = node
        self._clock = clock
        self._wants = wants
        self._seconds = lease_seconds
        self._random = random
        self._on_lead = on_lead
        self._on_lose = on_lose
        self._seen: Seen | None = None
        self._jitter = 0.0
        self._stands_back_until = float("-inf")
        self._mine: int | None = None
        self._begun = self._lapses = float("-inf")
        self._told: int | None = None
        self._writing = asyncio.Lock()
        self._changed = asyncio.Event()
        state.on_change(LEASE, self._on_change)

    def term(self) -> int | None:
        """The term in which this hub leads now; None when it does not, or cannot prove it any more."""
        return self._mine if self._clock() < self._lapses else None

    def leader(self) -> NodeId | None:
        """Who leads as far as this hub knows; None when nobody was heard of for longer than a lease."""
        now = self._clock()
        lease = self._look(now)
        if lease is None or self._seen is None or now >= free_at(lease, self._seen):
            return None
        return lease.holder

    async def run(self) -> NoReturn:
        """Take, renew and give up the lease for ever, as `wants` says."""
        while True:
            self._changed.clear()
            attempt = asyncio.create_task(self._try_step(), name="lease-step")
            try:
                while not attempt.done():
                    await asyncio.wait({attempt}, timeout=self._until_lapse())
                    self._notice()
            except asyncio.CancelledError:
                attempt.cancel()
                await asyncio.wait({attempt})
                raise
            try:
                async with asyncio.timeout(min(attempt.result(), self._until_lapse())):
                    await self._changed.wait()
            except TimeoutError:
                self._notice()

    async def step(self) -> float:
        """Do what is due now; seconds until something may be due again. Raises what the state raises."""
        now = self._clock()
        lease = self._look(now)
        if self._mine is not None:
            if not self._wants():
                await self.resign()
                return _RETRY_SECONDS
            due = self._begun + renewal_seconds(self._seconds)
            return due - now if now < due else await self._renew(self._mine)
        if not self._wants():
            return _LONGEST_PAUSE
        wait = self._free_at(lease) - now
        return wait if wait > 0 else await self._take()

    async def resign(self) -> None:
        """Stop leading at once and let another hub lead without waiting; this one stands back for two leases.

        When the state takes no writes, the lease runs out by itself.
        """
        term, self._mine = self._mine, None
        self._lapses = float("-inf")
        self._notice()
        if term is None:
            return
        self._stands_back_until = self._clock() + 2 * self._seconds
        async with self._writing:
            try:
                await self._state.change(LEASE, self._renewal(term, 0.0), term=term)
            except FelloeError as error:
                _LOG.info("the lease was not given up, it runs out: %s", error.code)

    async def _renew(self, term: int) -> float:
        async with self._writing:
            begun = self._clock()
            try:
                written = await self._state.change(LEASE, self._renewal(term, self._seconds), term=term)
            except FelloeError as error:
                if error.code != "not_leader":
                    raise
                written = None
            self._settle(term, written, begun)
        return _RETRY_SECONDS

    async def _take(self) -> float:
        seen = self._seen
        first_beat = int(self._random() * _BEATS)

        def take(before: bytes | None) -> bytes | None:
            after = taken(_read(before), seen, self._node, first_beat, self._seconds)
            return before if after is None else encode(after)

        async with self._writing:
            begun = self._clock()
            written = await self._state.change(LEASE, take)
            lease = _read(written)
            term = 1 if seen is None else seen.term + 1
            if lease is not None and (lease.holder, lease.term, lease.beat) == (self._node, term, first_beat):
                self._mine = term
                self._settle(term, written, begun)
        return _RETRY_SECONDS

    def _renewal(self, term: int, seconds: float) -> Callable[[bytes | None], bytes | None]:
        def renew(before: bytes | None) -> bytes | None:
            after = renewed(_read(before), self._node, term, seconds)
            return before if after is None else encode(after)

        return renew

    def _settle(self, term: int, written: bytes | None, begun: float) -> None:
        """Take note of what came of a write that was begun then."""
        if self._mine != term:
            return
        lease = _read(written)
        if lease is not None and (lease.holder, lease.term) == (self._node, term):
            self._begun, self._lapses = begun, lapses_at(begun, self._seconds)
        else:
            self._mine, self._lapses = None, float("-inf")
        self._notice()

    def _look(self, now: float) -> Lease | None:
        """Read the lease, and remember since when it is as it is."""
        lease = _read(self._state.get(LEASE))
        if lease is None:
            return None
        seen = see(self._seen, lease, now)
        if seen is not self._seen:
            self._seen = seen
            self._jitter = self._random() * JITTER_SECONDS * self._seconds / LEASE_SECONDS
        if self._mine is not None and lease.term > self._mine:
            self._mine, self._lapses = None, float("-inf")
            self._notice()
        return lease

    def _free_at(self, lease: Lease | None) -> float:
        """When this hub may try to take the lease."""
        if lease is None or self._seen is None:
            return self._stands_back_until
        given_up = lease.seconds <= 0
        jitter = self._jitter / 10 if given_up else self._jitter
        stands_back = self._stands_back_until if given_up and lease.holder == self._node else float("-inf")
        return max(free_at(lease, self._seen) + jitter, stands_back)

    async def _try_step(self) -> float:
        try:
            return await self.step()
        except FelloeError as error:
            _LOG.debug("the lease could not be written: %s", error)
        except Exception:
            _LOG.exception("the lease could not be tended")
        return _RETRY_SECONDS

    def _until_lapse(self) -> float:
        left = self._lapses - self._clock()
        return min(left + 0.01, _LONGEST_PAUSE) if left > 0 else _LONGEST_PAUSE

    def _notice(self) -> None:
        """Tell of a lead that began or ended since it was last told."""
        term = self.term()
        if term == self._told:
            return
        before, self._told = self._told, term
        if before is not None:
            _LOG.info("this hub no longer leads (term %d)", before)
            if self._on_lose is not None:
                self._on_lose()
        if term is not None:
            _LOG.info("this hub leads (term %d)", term)
            if self._on_lead is not None:
                self._on_lead(term)

    def _on_change(self, key: str) -> None:
        if key != LEASE:
            return
        try:
            self._look(self._clock())
        except FelloeError as error:
            _LOG.error("%s", error)
        self._changed.set()


def _read(value: bytes | None) -> Lease | None:
    return None if value is None else decode(value, Lease)
