"""This node follows the network's plan: it loads what the plan has here and unloads what it has here no more.

Owns the planned replicas; what the node's owner loaded by hand is none of its business. Each model is changed by one
task at a time. What is unloaded drains first, and what is loaded waits for the memory that this frees. What fails is
told, and rests; the leader learns of it from this node's record.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import NoReturn

import msgspec

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.plan import Placement
from felloe.domain.roster import LoadFailure, LoadingReplica, Replica
from felloe.domain.serving import decode_plan
from felloe.node.converging_rules import PROVEN_SECONDS, is_same, next_try, pause, placements_here, steps
from felloe.node.planned_load import LoadingPorts, Pace, PlannedLoad

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 30.0
_PROGRESS_SECONDS = 2.0
_REFUSALS = ("not_approved", "model_withdrawn", "catalog_expired")
_ENDINGS = ("not_approved", "model_withdrawn")
_MOST_DETAIL = 400
_MOST_LOADING, _MOST_FAILURES, _MOST_REMEMBERED = 32, 16, 64


class Converging:
    """Follows the plan for `node`. `changed` is called when what the node says of its planned replicas has changed.

    `number` is that of the newest plan, `placements` is all that it has, here and elsewhere.

    `rests` tells whether nothing is to begin now, because the node is being drained. `clock` never goes back; `wall` is
    Unix time, asked once, so that a clock that is set changes no pause. Both in seconds.
    """

    def __init__(
        self,
        node: NodeId,
        ports: LoadingPorts,
        *,
        changed: Callable[[], None],
        rests: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._node = node
        self._ports = ports
        self._changed = changed
        self._rests = rests
        self._clock = clock
        self._unix_at_zero = wall() - clock()
        self._pace = Pace()
        self._wanted: dict[ModelName, Placement] | None = None
        self._running: dict[ModelName, Placement] = {}
        self._loads: dict[ModelName, PlannedLoad] = {}
        self._ready_at: dict[ModelName, float] = {}
        self._failed: dict[ModelName, tuple[Placement, LoadFailure]] = {}
        self._works: dict[ModelName, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._stages: list[str] = []
        self._told_at = 0.0
        self.number = 0
        self.placements: tuple[Placement, ...] = ()
        ports.engines.on_change(self._wake.set)

    # what others ask

    def plan_changed(self, value: bytes) -> None:
        """A hub told the newest plan. What cannot be read changes nothing."""
        try:
            plan = decode_plan(value).plan
        except FelloeError as error:
            logger.warning("%s", error)
            return
        self.placements = plan.placements
        wanted = placements_here(plan.placements, self._node)
        if (wanted, plan.number) != (self._wanted, self.number):
            self._wanted, self.number = wanted, plan.number
            self._changed()
            self._wake.set()

    def approvals_changed(self) -> None:
        """Another model may be loaded now, or one no more."""
        for model in [model for model, (_, failure) in self._failed.items() if failure.code in _REFUSALS]:
            del self._failed[model]
        self._wake.set()

    def placed(self) -> frozenset[ModelName]:
        """The names under which planned replicas are loaded here, or are being loaded."""
        return frozenset(self._running)

    def files(self) -> frozenset[str]:
        """The names in the store of what is loaded or about to be: clean-up keeps off them."""
        names = self._ports.store.contents()
        known = (*self._running.values(), *(self._wanted or {}).values())
        contents = {placement.content for placement in known if placement.content}
        return frozenset(str(names[content]) for content in contents if content in names)

    def adopt(self, model: ModelName) -> None:
        """The owner wants this replica for good: the plan has no say over it any more."""
        if model in self._ready_at:
            self._forget(model)
            self._changed()

    def mark(self, replicas: Iterable[Replica]) -> tuple[Replica, ...]:
        """`replicas`, those of the plan as such."""
        return tuple(self._marked(replica) for replica in replicas)

    def loading(self) -> tuple[LoadingReplica, ...]:
        """What is on its way, and how far it is."""
        return tuple(load.loading for load in self._loads.values())[:_MOST_LOADING]

    def failures(self) -> tuple[LoadFailure, ...]:
        """What could not be loaded or kept alive here, the newest last."""
        found = [failure for model, (_, failure) in self._failed.items() if model not in self._ready_at]
        return tuple(sorted(found, key=lambda failure: failure.at)[-_MOST_FAILURES:])

    # what it does

    async def run(self) -> NoReturn:
        """Follow the plan, for ever; cancelled, it leaves what is loaded as it is."""
        try:
            while True:
                waits = next_try((failure for _, failure in self._failed.values()), self._wall())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if waits is None else max(0.05, waits)):
                        await self._wake.wait()
                self._wake.clear()
                if self._wanted is not None:
                    self._converge(self._wanted)
        finally:
            for work in self._works.values():
                work.cancel()
            await asyncio.gather(*self._works.values(), return_exceptions=True)

    def _wall(self) -> float:
        return self._unix_at_zero + self._clock()

    def _converge(self, wanted: dict[ModelName, Placement]) -> None:
        """Begin every step that can be made now; its end leads here again."""
        now = self._wall()
        for model, (_, failure) in list(self._failed.items()):
            if model not in wanted and now >= failure.at + failure.retry_in:
                del self._failed[model]
        over = {model: error for model in self._ready_at if (error := self._end_of(model)) is not None}
        for model, error in over.items():
            if model not in self._works:
                self._fail(self._running[model], error, {})
        todo = steps(wanted, self._running, over, self._failed, now)
        for model in todo.end:
            if model in self._loads:
                self._works[model].cancel()
            elif model not in self._works:
                self._work(model, self._end(model))
        for placement in () if self._rests() else todo.begin:
            if placement.model not in self._works and placement.model not in todo.end:
                self._work(placement.model, self._begin(placement))

    def _work(self, model: ModelName, work: Coroutine[None, None, None]) -> None:
        task = self._works[model] = asyncio.create_task(work, name=f"planned {model}")
        task.add_done_callback(partial(self._worked, model))

    def _worked(self, model: ModelName, work: asyncio.Task[None]) -> None:
        del self._works[model]
        if not work.cancelled() and (error := work.exception()) is not None:
            logger.error("%s: following the plan failed", model, exc_info=error)
            if (placement := (self._wanted or {}).get(model)) is not None:
                self._fail(placement, FelloeError("internal", f"loading failed with {type(error).__name__}"), {})
        self._wake.set()

    def _end_of(self, model: ModelName) -> FelloeError | None:
        """Why a replica that was ready cannot stay: its engine was given up, or it is not approved any more."""
        engines, store = self._ports.engines, self._ports.store
        replica = next((each for each in engines.replicas() if each.model.name == model), None)
        if replica is None or replica.state == "failed":
            return FelloeError("engine_failed", engines.problems().get(model, "its engine is gone"))
        content = self._running[model].content
        name = store.contents().get(content) if content else None
        if name is None:
            return None
        try:
            self._ports.gate(store.manifest_of(name))
        except FelloeError as error:
            return error if error.code in _ENDINGS else None
        return None

    async def _end(self, model: ModelName) -> None:
        logger.info("%s is unloaded: the plan has it here no more, or otherwise", model)
        try:
            with contextlib.suppress(FelloeError):  # somebody else has unloaded it meanwhile
                await self._ports.engines.unload(model, DRAIN_SECONDS, forgive=False)
        finally:
            self._forget(model)
            self._changed()

    async def _begin(self, placement: Placement) -> None:
        model = placement.model
        if any(replica.model.name == model for replica in self._ports.engines.replicas()):
            error = FelloeError("already_loaded", f"{model} is loaded here by the node's owner")
            self._fail(placement, error, {})
            return
        load = PlannedLoad(placement, self._ports, self._pace, self._clock, self._progressed)
        self._running[model], self._loads[model] = placement, load
        try:
            replica = await load.run(forgive=model in self._failed)
            if replica.state != "ready":
                raise FelloeError("engine_failed", self._ports.engines.problems().get(model, "its engine was given up"))
            self._ready_at[model] = self._clock()
            logger.info("%s is ready, as the plan wants it", model)
        except FelloeError as error:
            await self._undo(model, load)
            self._fail(placement, error, load.short)
        except BaseException:
            self._forget(model)
            raise
        finally:
            del self._loads[model]
            self._changed()

    async def _undo(self, model: ModelName, load: PlannedLoad) -> None:
        """Take away what a load left that did not become ready, such as an engine in quarantine."""
        self._forget(model)
        if load.left:
            with contextlib.suppress(FelloeError):
                await self._ports.engines.unload(model, 0.0, forgive=False)

    def _fail(self, placement: Placement, error: FelloeError, short: dict[str, int]) -> None:
        model, now = placement.model, self._wall()
        proven = self._clock() - self._ready_at.get(model, self._clock()) > PROVEN_SECONDS
        before = None if proven else self._failed.get(model)
        times = before[1].times + 1 if before is not None and is_same(before[0], placement) else 1
        logger.warning("%s was not loaded, or does not last: %s", model, error)
        failure = LoadFailure(
            model=model,
            variant=placement.variant,
            content=placement.content,
            code=error.code,
            detail=_shown(error.detail),
            devices=tuple(part.device for part in placement.parts),
            short=short,
            times=times,
            at=now,
            retry_in=pause(times),
        )
        self._failed.pop(model, None)
        self._failed[model] = (placement, failure)
        while len(self._failed) > _MOST_REMEMBERED:
            del self._failed[next(iter(self._failed))]
        self._changed()

    def _forget(self, model: ModelName) -> None:
        self._running.pop(model, None)
        self._ready_at.pop(model, None)

    def _marked(self, replica: Replica) -> Replica:
        model = replica.model.name
        placement = self._running.get(model)
        load = self._loads.get(model)
        if placement is None or (load is not None and not load.begun):
            return replica
        return msgspec.structs.replace(replica, planned=True, variant=placement.variant, content=placement.content)

    def _progressed(self) -> None:
        """Tell of a load's progress now and then, and of each new stage at once."""
        stages = [load.loading.stage for load in self._loads.values()]
        if stages != self._stages or self._clock() - self._told_at >= _PROGRESS_SECONDS:
            self._stages, self._told_at = stages, self._clock()
            self._changed()


def _shown(detail: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in detail)[:_MOST_DETAIL]
