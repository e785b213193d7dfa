"""One planned replica on its way: its files come, memory gets free, its engine starts. Tells how far it is."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from felloe.catalog.sources.progress import PullProgress
from felloe.catalog.store import ModelStore
from felloe.domain.errors import FelloeError
from felloe.domain.fleet import Machine
from felloe.domain.ids import ContentId
from felloe.domain.manifest import Manifest
from felloe.domain.models import Model
from felloe.domain.plan import Placement
from felloe.domain.roster import LoadingReplica, LoadStage, Replica
from felloe.engines.options import EngineDevice, EngineOptions
from felloe.engines.service import Engines
from felloe.host.budget import free_bytes
from felloe.node.converging_rules import held, in_words, rate_after, short_of, start_seconds

Fetch = Callable[[ContentId, Callable[[PullProgress], None]], Awaitable[Model]]
Short = dict[str, int]

_MOST_FETCHES = 2
_ROOM_SECONDS, _LOOK_SECONDS = 60.0, 1.0
_OTHER_PULL_SECONDS = 2.0


class LoadingPorts(msgspec.Struct, frozen=True, kw_only=True):
    """What a load needs of the node's other parts.

    `decided` waits a moment for what curators decided of a content: a node that has just come may hear of it after the
    plan. `fetch` brings approved files from other nodes, `gate` raises for a manifest that may not be loaded now, and
    `look` sees the machine as it is this moment; `told` is the machine that the network plans with, `devices` are its
    own as engines call them.
    """

    engines: Engines
    store: ModelStore
    decided: Callable[[ContentId], Awaitable[object]]
    fetch: Fetch
    gate: Callable[[Manifest], None]
    look: Callable[[], Awaitable[Machine]]
    told: Callable[[], Machine]
    devices: Callable[[], tuple[EngineDevice, ...]]
    threads: int = 0
    room_seconds: float = _ROOM_SECONDS


class Pace:
    """What all loads of this node share: how many fetch at once, and how fast engines have started here so far."""

    def __init__(self) -> None:
        self.fetching = asyncio.Semaphore(_MOST_FETCHES)
        self.rate = 0.0


class PlannedLoad:
    """Brings one placement to life. `short` tells, once it has failed for memory, where how much more was wanted."""

    def __init__(
        self,
        placement: Placement,
        ports: LoadingPorts,
        pace: Pace,
        clock: Callable[[], float],
        told: Callable[[], None],
    ) -> None:
        self._placement = placement
        self._ports = ports
        self._pace = pace
        self._clock = clock
        self._told = told
        self._stage: LoadStage = "waiting"
        self._progress = PullProgress()
        self._ready_at: float | None = None
        self.begun = self.left = False
        self.short: Short = {}

    @property
    def loading(self) -> LoadingReplica:
        """How far it is."""
        wait = 0.0 if self._ready_at is None else max(1.0, self._ready_at - self._clock())
        return LoadingReplica(
            model=self._placement.model,
            variant=self._placement.variant,
            stage=self._stage,
            done=self._progress.done,
            total=self._progress.total,
            ready_in=round(wait, 1),
        )

    async def run(self, *, forgive: bool) -> Replica:
        """Load it; raises what the catalogue, the store and the engines raise, and `out_of_memory`.

        `begun` is set once its engine is starting, `left` when one is there, which may be in quarantine. With `forgive`
        earlier crashes of the model count no more.
        """
        placement, ports = self._placement, self._ports
        name = (await self._files()).name
        manifest = ports.store.manifest_of(name)
        ports.gate(manifest)
        async with ports.store.in_use(name) as path:
            await ports.store.assure(name)
            model = msgspec.structs.replace(ports.store.usable(name), name=placement.model)
            options = EngineOptions(
                context=placement.context,
                slots=placement.slots,
                threads=ports.threads,
                kv_type=placement.kv_type,
                parts=placement.parts,
                devices=ports.devices(),
                defaults=manifest.defaults,
                template=manifest.template or "",
            )
            await self._room()
            # Nothing is awaited between the look and the load, which takes the memory from then on.
            self.begun = True
            began = self._clock()
            self._tell("starting", PullProgress(), start_seconds(model.size, self._pace.rate))
            replica = await ports.engines.load(model, path, options, forgive=forgive, short=self.short.update)
            self.left = True
        if replica.state == "ready":
            self._pace.rate = rate_after(self._pace.rate, model.size, self._clock() - began)
        return replica

    async def _files(self) -> Model:
        """The model of the store that has the placement's content; it comes from other nodes first where it must."""
        content = self._placement.content
        if not content:
            raise FelloeError("model_not_found", f"the plan names no files for {self._placement.model}")
        await self._ports.decided(content)
        while True:
            here = self._ports.store.contents().get(content)
            if here is not None:
                return self._ports.store.usable(here)
            try:
                async with self._pace.fetching:
                    self._tell("fetching", PullProgress())
                    return await self._ports.fetch(content, self._came)
            except FelloeError as error:
                if error.code != "already_pulling":
                    raise
            await asyncio.sleep(_OTHER_PULL_SECONDS)

    def _came(self, progress: PullProgress) -> None:
        ready_in = progress.eta + start_seconds(progress.total, self._pace.rate) if progress.eta else None
        self._tell("fetching", progress, ready_in)

    async def _room(self) -> None:
        """Wait until the placement's memory is free, for others may be leaving; raises `out_of_memory`."""
        ends_at = self._clock() + self._ports.room_seconds
        while True:
            machine = await self._ports.look()
            free = free_bytes(machine, held(self._ports.engines.replicas()))
            missing = short_of(self._placement.parts, machine, self._ports.told(), free)
            if not missing:
                return
            if self._clock() >= ends_at:
                self.short = dict.fromkeys(missing, 0)
                detail = f"{self._placement.model} does not fit beside what is there now: {in_words(missing)}"
                raise FelloeError("out_of_memory", detail)
            self._tell("waiting", PullProgress())
            await asyncio.sleep(_LOOK_SECONDS)

    def _tell(self, stage: LoadStage, progress: PullProgress, ready_in: float | None = None) -> None:
        self._stage, self._progress = stage, progress
        self._ready_at = None if ready_in is None else self._clock() + ready_in
        self._told()
