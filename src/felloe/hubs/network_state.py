"""The network's state on a hub: reads from the copy in memory, writes that most of the hubs have acknowledged."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.hubs.generations import TEND_SECONDS, Generations
from felloe.hubs.records import BARRIER, GENERATION, LEASE, NEXT, Change, Lease, Next, Revision, Watcher, decode, encode
from felloe.hubs.saved_state import SavedState, write_saved
from felloe.hubs.state_server import StatePlace
from felloe.hubs.store import Conflict, Entry, Store
from felloe.mesh.server_config import Routes

logger = logging.getLogger(__name__)

SAVE_SECONDS = 0.2
CHANGE_SECONDS = 12.0
"""How long a write is tried: longer than the state servers need to elect another leader."""

RETRY_SECONDS = 0.1


class NetworkState:
    """Implements `State`; owns the saved copy. `save` stores a file; for `routes` see `Generations`."""

    def __init__(
        self,
        place: StatePlace,
        saved: SavedState,
        *,
        save: Callable[[bytes], None],
        routes: Callable[[int, tuple[NodeId, ...]], Routes | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.generations = Generations(
            place, saved, routes=routes, changed=self._changed, adopted=self._adopted, clock=clock
        )
        self._save_bytes = save
        self._clock = clock
        self._watchers: list[tuple[str, Watcher]] = []
        self._writing = asyncio.Lock()
        self._saving: asyncio.TimerHandle | None = None

    @property
    def revision(self) -> Revision:
        """How new the copy in memory is."""
        store = self.generations.store
        return Revision(self.generations.current.number, 0 if store is None else store.sequence)

    def get(self, key: str) -> bytes | None:
        """A key's value in the copy in memory."""
        entry = self.entry(key)
        return None if entry is None else entry.value

    def entry(self, key: str) -> Entry | None:
        """A key's value and the sequence of the write that made it."""
        return self.generations.entries().get(key)

    def items(self, prefix: str) -> dict[str, bytes]:
        """All keys that begin with `prefix`, and their values."""
        entries = self.generations.entries()
        return {
            key: entry.value for key, entry in entries.items() if key.startswith(prefix) and entry.value is not None
        }

    def on_change(self, prefix: str, callback: Watcher) -> None:
        """Call `callback` in the event loop, after each change of a key that begins with `prefix`, with that key."""
        self._watchers.append((prefix, callback))

    def learn(self, key: str, value: bytes) -> None:
        """Believe a key's value that another hub told, until this hub keeps the state itself."""
        if self.generations.learn_key(key, value):
            self._tell(key)

    async def start(self) -> None:
        """Start what this hub keeps; returns when its copy is as new as can be had in a few seconds."""
        await self.generations.start()

    async def close(self) -> None:
        """Stop the state servers and save the copy."""
        await self.generations.close()
        if self._saving is not None:
            self._save()

    async def change(self, key: str, function: Change, *, term: int | None = None) -> bytes | None:
        """See `State.change`."""
        deadline = self._clock() + CHANGE_SECONDS
        async with self._writing:
            while True:
                try:
                    return await self._change_once(key, function, term)
                except Conflict:
                    if self._clock() > deadline:
                        raise FelloeError(
                            "overloaded", "too many hubs write the state at once", retry_after=1.0
                        ) from None
                except FelloeError as error:
                    if error.code != "network_unreachable" or self._clock() > deadline:
                        raise
                    await asyncio.sleep(RETRY_SECONDS)
                if (store := self.generations.store) is not None:
                    await store.catch_up()

    async def move(self, hubs: tuple[NodeId, ...], term: int, *, seconds: float = 60.0) -> None:
        """As the leader of `term`: have `hubs` keep the state, this one among them; done when this returns.

        Raises `network_unreachable` when the new hubs do not come up in time (the state stays where it is), or do not
        answer after it was closed; `not_leader`.
        """
        generations = self.generations
        last = max(generations.current.number, generations.following.number if generations.following else 0)
        plan = Next(number=last + 1, hubs=hubs)

        async def replace(before: Next, after: Next) -> None:
            await self.change(NEXT, lambda now: encode(after) if now == encode(before) else now, term=term)

        await self.change(NEXT, lambda _: encode(plan), term=term)
        if not await self._until(lambda: generations.is_ready(plan.number), seconds):
            await replace(plan, Next(number=plan.number, hubs=()))
            raise FelloeError("network_unreachable", "not all of the chosen hubs could be reached for the state")
        await replace(plan, Next(number=plan.number, hubs=hubs, closed=True))
        if not await self._until(lambda: generations.current.number >= plan.number, seconds):
            raise FelloeError("network_unreachable", "the state is moving, but its new hubs do not answer")

    async def start_over(self, replacing: Mapping[str, bytes], *, seconds: float = 30.0) -> None:
        """After most of the hubs were lost for good: keep the state here alone, from this hub's copy.

        What the others acknowledged and this hub never saw is lost. Raises `forbidden` while the state is well,
        `network_unreachable` when this hub's own server does not come up.
        """
        if await self.generations.is_well():
            raise FelloeError("forbidden", "enough hubs are there, so nothing need be given up")
        self.generations.start_over(replacing)
        if not await self._until(lambda: self.get(GENERATION) is not None, seconds):
            raise FelloeError("network_unreachable", "this hub's state server does not answer")

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        deadline = self._clock() + seconds
        while not condition() and self._clock() < deadline:
            await self.generations.wait_moved(0.05)
        return condition()

    async def _change_once(self, key: str, function: Change, term: int | None) -> bytes | None:
        store = await self._open_store()
        _check_term(store, term)
        after = store.sequence
        before = store.get(key)
        value = function(before)
        if value != before:
            await _write(store, key, value, after)
        else:
            # In a copy that is late there may seem to be nothing to do; only a write shows that it is not late.
            await _write(store, BARRIER, b"%d" % after, after)
        return value

    async def _open_store(self) -> Store:
        """The store that takes writes. Raises `network_unreachable`, after a moment when the state is moving."""
        store = self.generations.store
        if store is None or store.get(GENERATION) is None:
            raise FelloeError("network_unreachable", "this hub does not keep the network's state now")
        following = store.get(NEXT)
        if following is not None and decode(following, Next).closed:
            await self.generations.wait_moved(TEND_SECONDS)
            raise FelloeError("network_unreachable", "the network's state is moving to other hubs")
        return store

    def _changed(self, key: str) -> None:
        self._tell(key)
        if self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(SAVE_SECONDS, self._save)

    def _adopted(self) -> None:
        self._save()
        for key in list(self.generations.entries()):
            self._tell(key)

    def _tell(self, key: str) -> None:
        for prefix, watcher in self._watchers:
            if not key.startswith(prefix):
                continue
            try:
                watcher(key)
            except Exception:
                logger.exception("a watcher of the state failed at %s", key)

    def _save(self) -> None:
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        try:
            write_saved(self._save_bytes, self.generations.current, self.generations.entries())
        except (FelloeError, OSError) as error:
            logger.error("the copy of the network's state was not saved: %s", error)


async def _write(store: Store, key: str, value: bytes | None, after: int) -> None:
    try:
        await store.write(key, value, after)
    except FelloeError as error:
        if error.code != "network_unreachable" or not await store.read_to(after + 1, 1.0):
            raise
        # The write may be the one that came next, although nobody said so.
        if store.entries.get(key) != Entry(value, after + 1):
            raise Conflict from error


def _check_term(store: Store, term: int | None) -> None:
    if term is None:
        return
    lease = store.get(LEASE)
    if lease is None or decode(lease, Lease).term != term:
        raise FelloeError("not_leader", "another hub has taken the lead")
