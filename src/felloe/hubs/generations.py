"""Which generation of the state is current, and the way from one to the next.

A move to other hubs goes: `next` is written; the new hubs start state servers; the leader closes the old generation by
one write, which is the point of no return; whoever keeps both copies all keys and opens the new one by its key
`generation`; everybody goes over. Each step can be repeated by any hub after a crash.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.hubs.records import GENERATION, LEASE, NEXT, Generation, Lease, Next, decode, encode
from felloe.hubs.saved_state import SAVED_NAME, SavedState
from felloe.hubs.state_server import StatePlace, StateServer
from felloe.hubs.store import Entry, Store
from felloe.mesh.server_config import Routes

logger = logging.getLogger(__name__)

TEND_SECONDS = 1.0
HELP_AFTER_SECONDS = 3.0
COPIES_AT_ONCE = 64
_NOT_COPIED = (NEXT, GENERATION)
_FAR_ABOVE = 1000


@dataclass
class _Kept:
    """One generation that this hub keeps now."""

    hubs: tuple[NodeId, ...]
    server: StateServer
    store: Store
    runner: asyncio.Task[None]
    created: bool = False


class Generations:
    """Owns this hub's state servers and what it believes of the current and the next generation.

    `routes` gives how the state servers of a generation reach each other, None for one hub alone. `changed` is told a
    key of the current generation that has a new value, `adopted` that another generation is current.
    """

    def __init__(
        self,
        place: StatePlace,
        saved: SavedState,
        *,
        routes: Callable[[int, tuple[NodeId, ...]], Routes | None],
        changed: Callable[[str], None],
        adopted: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.current: Generation = saved.generation
        self.following: Next | None = None
        self._saved: Mapping[str, Entry] = saved.entries
        self._place = place
        self._routes = routes
        self._tell_changed = changed
        self._tell_adopted = adopted
        self._clock = clock
        self._closed_since: float | None = None
        self._kept: dict[int, _Kept] = {}
        self._wake = asyncio.Event()
        self._moved = asyncio.Condition()
        self._tender: asyncio.Task[None] | None = None

    @property
    def keeps(self) -> bool:
        """Whether this hub is one of those that keep the current generation."""
        return self._place.node in self.current.hubs

    @property
    def process_ids(self) -> tuple[int, ...]:
        """The state servers' processes that run now."""
        return tuple(pid for kept in self._kept.values() if (pid := kept.server.process_id) is not None)

    @property
    def store(self) -> Store | None:
        """The current generation's store, where this hub keeps it and runs its server."""
        kept = self._kept.get(self.current.number)
        return None if kept is None else kept.store

    def entries(self) -> Mapping[str, Entry]:
        """The newest copy of all keys: the store's, or the one from before it was complete."""
        store = self.store
        return self._saved if store is None or GENERATION not in store.entries else store.entries

    def is_ready(self, number: int) -> bool:
        """Whether this hub's server of that generation is up, and enough others with it."""
        kept = self._kept.get(number)
        return kept is not None and kept.created

    def learn(self, generation: Generation | None, following: Next | None) -> None:
        """Take note of what other hubs say about where the state is; older news is ignored."""
        if generation is not None and generation.number > self.current.number:
            self._adopt(generation)
        known = self.following.number if self.following else 0
        if following is not None and following.number >= max(self.current.number + 1, known):
            self.following = following
        self._wake.set()

    def learn_key(self, key: str, value: bytes) -> bool:
        """Keep a key's value as another hub told it, unless this hub keeps the state itself; whether it is new."""
        known = self._saved.get(key)
        if self.entries() is not self._saved or (known is not None and known.value == value):
            return False
        self._saved = {**self._saved, key: Entry(value, 0)}
        return True

    def start_over(self, replacing: Mapping[str, bytes]) -> None:
        """Keep the state here alone from now on: this hub's copy with some keys replaced, as a new generation.

        Its number is far above any that hubs which are lost may have begun.
        """
        kept = {key: entry for key, entry in self.entries().items() if key not in (*_NOT_COPIED, LEASE)}
        kept |= {key: Entry(value, 0) for key, value in replacing.items()}
        last = max(self.current.number, self.following.number if self.following else 0)
        self.following = None
        self._adopt(Generation(number=last + _FAR_ABOVE, hubs=(self._place.node,)), kept)

    async def is_well(self) -> bool:
        """Whether what this hub keeps is up to date now; true when it has nothing to keep."""
        store = self.store
        return not self.keeps or (store is not None and store.get(GENERATION) is not None and await store.catch_up())

    async def wait_moved(self, seconds: float) -> None:
        """Wait for the next generation to be current, at most so long."""
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._moved:
                await self._moved.wait()

    async def start(self) -> None:
        """Start what this hub keeps; returns when its copy is as new as can be had in a few seconds."""
        await self._tend()
        if (store := self.store) is not None:
            await store.catch_up()
        self._tender = asyncio.create_task(self._tend_for_ever(), name="generations")

    async def close(self) -> None:
        """Stop the state servers; what they keep stays on disk."""
        tender, self._tender = self._tender, None
        if tender is not None:
            tender.cancel()
            await asyncio.wait({tender})
        self._saved = self.entries()
        for number in list(self._kept):
            await self._drop(number, forget=False)

    async def reload(self) -> None:
        """The certificates or the hubs' keys have changed."""
        for kept in list(self._kept.values()):
            await kept.server.reload()

    async def _tend_for_ever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TEND_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._tend()
            except FelloeError as error:
                logger.warning("the state is not well: %s", error)
            except Exception:
                logger.exception("tending the state failed")

    async def _tend(self) -> None:
        await self._keep(self.current.number, self.current.hubs)
        self._read_following()
        if self.following is not None:
            await self._keep(self.following.number, self.following.hubs)
            await self._follow_move(self.following)
        await self._drop_old()

    def _read_following(self) -> None:
        """Who keeps the current generation reads where it goes; the others have it from `learn`."""
        value = None if self.store is None else self.store.get(NEXT)
        if value is not None:
            self.following = decode(value, Next)
        if self.following is not None and self.following.number <= self.current.number:
            self.following = None

    async def _keep(self, number: int, hubs: tuple[NodeId, ...]) -> None:
        """Run the state server of a generation that this hub is to keep, and make its stream."""
        if self._place.node not in hubs:
            return
        kept = self._kept.get(number)
        if kept is None:
            kept = self._kept[number] = await self._start_server(number, hubs)
        if not kept.created:
            with contextlib.suppress(FelloeError):
                await kept.store.create(len(hubs))
                kept.created = True
        if kept.created and hubs == (self._place.node,) and number == self.current.number:
            await self._mend(kept)

    async def _start_server(self, number: int, hubs: tuple[NodeId, ...]) -> _Kept:
        server = StateServer(self._place, number, lambda: self._routes(number, hubs))
        await server.start()
        # A saved copy without `generation` is what the store is yet to be filled with.
        continues = number == self.current.number and GENERATION in self._saved
        store = Store(server.line, number, self._saved if continues else None)
        store.on_change(lambda key: self._changed(number, key))
        await store.start()
        runner = asyncio.create_task(server.run(), name=f"state-server-{number}")
        return _Kept(hubs, server, store, runner)

    async def _mend(self, kept: _Kept) -> None:
        """Alone, this hub fills a store that is empty, and replaces one that has lost writes by its saved copy."""
        store = kept.store
        # What is written while the server is asked is beyond its answer, and not lost.
        seen = store.sequence
        last = await store.last_sequence()
        if seen > last:
            logger.error(
                "%s has lost writes: it ends at %d, but %d were seen; the state is restored from %s",
                self._place.folder(store.generation),
                last,
                seen,
                SAVED_NAME,
            )
            saved = {key: entry for key, entry in store.entries.items() if key not in _NOT_COPIED}
            self._adopt(Generation(number=store.generation + 1, hubs=kept.hubs), saved)
            return
        if store.get(GENERATION) is None:
            await store.catch_up()
        if store.get(GENERATION) is None:
            await _fill(store, self._saved, self.current)

    async def _follow_move(self, following: Next) -> None:
        """Do what this hub can to finish the move, and go over when it is done."""
        kept = self._kept.get(following.number)
        if kept is None or not kept.created:
            return
        if kept.store.get(GENERATION) is None:
            await kept.store.catch_up()
        if kept.store.get(GENERATION) is None and following.closed:
            await self._help_move(kept, following)
        if (opened := kept.store.get(GENERATION)) is not None:
            self._adopt(decode(opened, Generation))
            async with self._moved:
                self._moved.notify_all()

    async def _help_move(self, kept: _Kept, following: Next) -> None:
        """Copy the closed generation; the leader does it at once, the others when it has had its time."""
        store = self.store
        if store is None:
            return
        if self._closed_since is None:
            self._closed_since = self._clock()
        lease = store.get(LEASE)
        leads = lease is not None and decode(lease, Lease).holder == self._place.node
        if leads or self._clock() - self._closed_since > HELP_AFTER_SECONDS:
            generation = Generation(number=following.number, hubs=following.hubs)
            await _fill(kept.store, store.entries, generation)

    def _adopt(self, generation: Generation, entries: Mapping[str, Entry] | None = None) -> None:
        """Go over to a newer generation; `entries` is the copy to begin with, where no store has it yet."""
        logger.info("the state is in generation %d, on %d hubs", generation.number, len(generation.hubs))
        self._saved = self.entries() if entries is None else entries
        self.current = generation
        self._closed_since = None
        self._tell_adopted()
        self._wake.set()

    async def _drop_old(self) -> None:
        """End the servers of generations that are over or that this hub is not to keep."""
        wanted = {self.current.number: self.current.hubs}
        if self.following is not None:
            wanted[self.following.number] = self.following.hubs
        for number in list(self._kept):
            if self._place.node not in wanted.get(number, ()):
                await self._drop(number, forget=number != self.current.number)

    async def _drop(self, number: int, *, forget: bool) -> None:
        kept = self._kept.pop(number)
        await kept.store.close()
        await kept.server.stop()
        kept.runner.cancel()
        await asyncio.wait({kept.runner})
        if forget:
            kept.server.forget()

    def _changed(self, number: int, key: str) -> None:
        if key in (NEXT, GENERATION):
            self._wake.set()
        if number == self.current.number:
            self._tell_changed(key)


async def _fill(store: Store, entries: Mapping[str, Entry], generation: Generation) -> None:
    """Copy `entries` into a new generation and open it."""
    values = [(key, entry.value) for key, entry in entries.items() if entry.value and key not in _NOT_COPIED]
    for first in range(0, len(values), COPIES_AT_ONCE):
        await asyncio.gather(*(store.copy(key, value) for key, value in values[first : first + COPIES_AT_ONCE]))
    await store.copy(GENERATION, encode(generation))
    await store.catch_up()
