"""Answers over the whole network: picks a replica, passes its answer on, and goes on elsewhere when it breaks."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Protocol

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.ports import Deliver, Rosters
from felloe.domain.requests import Done, InferenceRequest, Reach
from felloe.domain.roster import NodeRecord, Replica, Roster
from felloe.routing import rules
from felloe.routing.attempt import Attempt
from felloe.routing.deadline import answered_within
from felloe.routing.demand import FIRST_ANSWER_SECONDS, Demand
from felloe.routing.journey import Journey
from felloe.routing.model_index import NO_OFFERS, IndexCache, Offers
from felloe.routing.rules import Busy, Others
from felloe.routing.stats import RouterStats
from felloe.routing.targets import Target

PATIENCE_SECONDS = 3.0
LOAD_WAIT_SECONDS = 60.0
_LONGEST_NAP = 0.25


class LocalAnswers(Protocol):
    """This node's own replicas behind their queue."""

    async def answer(self, request: InferenceRequest, deliver: Deliver) -> Done: ...

    def replicas(self) -> tuple[Replica, ...]: ...

    def find(self, model: ModelName) -> Replica | None: ...

    def busy(self, model: ModelName) -> Busy: ...

    def on_change(self, callback: Callable[[], None]) -> None: ...


class NodeAnswers(Protocol):
    """The way to ask one other node."""

    async def answer(
        self,
        record: NodeRecord,
        request: InferenceRequest,
        deliver: Deliver,
        can_leave: Callable[[], bool],
        /,
    ) -> Done:
        """While nobody else can be reached, the answer fails at once if `can_leave` says that it may."""
        ...


class Router:
    """Implements `Answers` for the gateway.

    The pieces of one answer come from one replica after another if need be, but join as if from one: a token is
    never given twice or left out. The frame with the finish reason is held until `Done` is there, so that a replica
    that dies in between leaves nothing half finished. `reach` is the most that policy allows; `patience_seconds` is
    how long a request waits for a replica to appear when nobody can be asked. While this node is not `settled`, a model
    that nobody has may only not have been heard of yet. What nobody serves and `demand` knows to be wanted is asked
    for; a request that does not say how long it waits for that waits `load_wait_seconds`.
    """

    def __init__(
        self,
        rosters: Rosters,
        local: LocalAnswers,
        remote: NodeAnswers,
        *,
        reach: Reach = "network",
        demand: Demand | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        load_wait_seconds: float = LOAD_WAIT_SECONDS,
        settled: Callable[[], bool] = lambda: True,
        random: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rosters = rosters
        self._local = local
        self._remote = remote
        self._reach: Reach = reach
        self._demand = demand
        self._patience_seconds = patience_seconds
        self._load_wait_seconds = load_wait_seconds
        self._settled = settled
        self._random = (random or Random()).random  # noqa: S311 - spreads load, keeps no secret
        self._clock = clock
        self._indexes = IndexCache(clock)
        self._outstanding: dict[tuple[NodeId, ModelName], int] = {}
        self._promised: dict[ModelName, int] = {}
        self._change = asyncio.Event()
        self._stats = RouterStats()
        rosters.on_change(lambda _: self._change.set())
        local.on_change(self._change.set)
        if demand is not None:
            demand.on_answer(self._change.set)

    def stats(self) -> RouterStats:
        """The live counts; read, do not change."""
        return self._stats

    async def close(self) -> None:
        """Give up asking for models."""
        if self._demand is not None:
            await self._demand.close()

    async def answer(self, request: InferenceRequest, deliver: Deliver) -> Done:
        """Answer `request` within its deadline.

        Raises, besides what the caller did wrong and what `deliver` raises: `model_not_found`,
        `unsupported_capability`, `no_replica`, `overloaded`, `model_loading`, `does_not_fit` before the first piece;
        `replica_lost`, `resume_diverged` after it; `deadline_exceeded`.
        """
        if request.resume is not None:
            raise FelloeError("internal", "a request that resumes goes to a replica, not to a router")
        self._stats.requests += 1
        journey = Journey(request, self._clock() + request.deadline, self._patience_seconds)
        try:
            return await answered_within(request.deadline, self._travel(journey, deliver))
        except FelloeError:
            if journey.progress.begun:
                self._stats.broken += 1
            raise

    async def _travel(self, journey: Journey, deliver: Deliver) -> Done:
        while True:
            target = await self._target(journey)
            attempt = Attempt(journey, target, deliver, self._stats, self._clock)
            journey.begin()
            self._count_in(target, journey.request.model)
            try:
                done = await self._ask(journey, target, attempt.take)
                await attempt.finish()
                return done
            except FelloeError as error:
                if attempt.reader_failed:
                    raise
                journey.failed(target, self._issued_at(target), error, self._clock())
                self._stats.retried += 1
            finally:
                self._count_out(target, journey.request.model)
                self._keep_promise(journey)

    def _ask(self, journey: Journey, target: Target, deliver: Deliver) -> Awaitable[Done]:
        request = journey.next_request(self._clock())
        if target.record is None:
            return self._local.answer(request, deliver)
        return self._remote.answer(target.record, request, deliver, lambda: self._promise_slot(journey))

    def _promise_slot(self, journey: Journey) -> bool:
        """Whether this node can go on with an answer that comes from elsewhere; its slot is not promised twice."""
        local = self._local_target(journey, self._rosters.snapshot())
        if local is None or journey.promised:
            return False
        (target, busy), model = local, journey.request.model
        promised = self._promised.get(model, 0)
        if rules.pressure(Busy(busy.active + promised, busy.waiting), target.replica.slots) >= 1:
            return False
        self._promised[model] = promised + 1
        journey.promised = True
        return True

    def _keep_promise(self, journey: Journey) -> None:
        """The answer goes on here now, or has ended."""
        if journey.promised:
            journey.promised = False
            model = journey.request.model
            self._promised[model] -= 1
            if not self._promised[model]:
                del self._promised[model]

    def _count_in(self, target: Target, model: ModelName) -> None:
        if target.record is None:
            self._stats.local += 1
        else:
            self._stats.remote += 1
            key = (target.node, model)
            self._outstanding[key] = self._outstanding.get(key, 0) + 1

    def _count_out(self, target: Target, model: ModelName) -> None:
        if target.record is not None:
            key = (target.node, model)
            self._outstanding[key] -= 1
            if not self._outstanding[key]:
                del self._outstanding[key]

    async def _target(self, journey: Journey) -> Target:
        while True:
            self._change.clear()
            target = self._pick(journey)
            if target is not None:
                return target
            demand = self._cold(journey, fresh=True)
            if demand is not None:
                await self._until_loaded(journey, demand)
                continue
            # It looks again without being told, too: this node's own replicas may change unheard.
            await _wait(self._change, min(_LONGEST_NAP, journey.wait(self._clock())))

    def _cold(self, journey: Journey, *, fresh: bool = False) -> Demand | None:
        """Who asks for the model of `journey`, if it is wanted and nobody within reach serves it."""
        demand, model = self._demand, journey.request.model
        if demand is None or not self._may_leave(journey) or not demand.is_wanted(model):
            return None
        offers = self._indexes.get(self._rosters.snapshot(), fresh=fresh).get(model)
        return demand if not offers.ready and self._local.find(model) is None else None

    async def _until_loaded(self, journey: Journey, demand: Demand) -> None:
        """Wait until somebody serves the model; raises when that takes too long or will not be."""
        model, begun = journey.request.model, journey.progress.begun
        self._stats.cold += 1
        seconds = self._load_wait_seconds if journey.request.wait is None else journey.request.wait
        if journey.tried:
            # A replica that broke may be back in a moment, whoever does not want to wait for a load.
            seconds = max(seconds, self._patience_seconds)
        # Once until a piece comes: a model that comes and goes does not make it wait for ever.
        until = journey.load_by = journey.load_by or self._clock() + seconds
        answered_by = self._clock() + FIRST_ANSWER_SECONDS
        try:
            with demand.line(model, ahead=begun):
                while self._cold(journey) is not None:
                    self._change.clear()
                    answered, now = demand.look(model), self._clock()
                    if now >= until and (answered or now >= answered_by):
                        raise demand.not_yet(model)
                    await _wait(self._change, min(_LONGEST_NAP, max(until, answered_by) - now))
        except FelloeError as error:
            if not begun:
                raise
            detail = f"no replica of {model} is left to go on with the answer ({error.code})"
            raise FelloeError("replica_lost", detail) from None

    def _may_leave(self, journey: Journey) -> bool:
        return rules.narrower(self._reach, journey.request.reach) != "device"

    def _pick(self, journey: Journey) -> Target | None:
        roster = self._rosters.snapshot()
        journey.look(self._clock())
        local = self._local_target(journey, roster)
        if not self._may_leave(journey):
            offers = NO_OFFERS
            target = self._choose(journey, roster, local, offers)
        else:
            offers = self._indexes.get(roster).get(journey.request.model)
            target = self._choose(journey, roster, local, offers)
            if target is None:
                offers = self._indexes.get(roster, fresh=True).get(journey.request.model)
                target = self._choose(journey, roster, local, offers)
        if target is None and not journey.tried and self._settled() and self._cold(journey) is None:
            self._refuse_unknown(journey, offers)
        return target

    def _choose(
        self, journey: Journey, roster: Roster, local: tuple[Target, Busy] | None, offers: Offers
    ) -> Target | None:
        others = Others(offers.ready, offers.free, roster.members, self._outstanding)
        return rules.choose(journey.wanted, local, others, journey.excludes, self._random)

    def _local_target(self, journey: Journey, roster: Roster) -> tuple[Target, Busy] | None:
        replica = self._local.find(journey.request.model)
        if replica is None or not rules.fits(replica, journey.wanted):
            return None
        if journey.excludes(roster.this, _issued_here(roster)):
            return None
        return Target(roster.this, None, replica), self._local.busy(journey.request.model)

    def _issued_at(self, target: Target) -> float:
        return _issued_here(self._rosters.snapshot()) if target.record is None else target.record.issued_at

    def _refuse_unknown(self, journey: Journey, offers: Offers) -> None:
        model = journey.request.model
        here = [replica.model for replica in self._local.replicas() if replica.model.name == model]
        if not here and not offers.known:
            raise FelloeError("model_not_found", f"no node within reach has the model {model}", param="model")
        offered = offers.capabilities.union(*(each.capabilities for each in here))
        for capability in journey.wanted.capabilities:
            if capability not in offered:
                raise FelloeError(
                    "unsupported_capability", f"the model {model} does not offer {capability}", param="model"
                )


def _issued_here(roster: Roster) -> float:
    member = roster.members.get(roster.this)
    return 0.0 if member is None else member.record.issued_at


async def _wait(change: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await change.wait()
