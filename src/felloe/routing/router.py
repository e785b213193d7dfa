"""Answers over the whole network: picks a replica, passes its answer on, and goes on elsewhere when it breaks."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from random import Random
from typing import Protocol

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.ports import Rosters
from felloe.domain.requests import Done, InferenceRequest, Part, Piece, Reach
from felloe.domain.roster import NodeRecord, Replica, Roster
from felloe.routing import rules
from felloe.routing.interruption import Interruption
from felloe.routing.journey import Journey
from felloe.routing.model_index import NO_OFFERS, IndexCache, Offers
from felloe.routing.rules import FINISH_MARK, Busy, Others, Target
from felloe.routing.stats import RouterStats

PATIENCE_SECONDS = 3.0
_LONGEST_NAP = 0.25


class LocalAnswers(Protocol):
    """This node's own replicas behind their queue."""

    def answer(self, request: InferenceRequest) -> AsyncGenerator[Part, None]: ...

    def replicas(self) -> tuple[Replica, ...]: ...

    def find(self, model: ModelName) -> Replica | None: ...

    def busy(self, model: ModelName) -> Busy: ...

    def on_change(self, callback: Callable[[], None]) -> None: ...


class NodeAnswers(Protocol):
    """The way to ask one other node."""

    def answer(self, record: NodeRecord, request: InferenceRequest) -> AsyncGenerator[Part, None]: ...


class Router:
    """Implements `Answers` for the gateway.

    The pieces of one answer come from one replica after another if need be, but join as if from one: a token is
    never given twice or left out. The frame with the finish reason is held until `Done` is there, so that a replica
    that dies in between leaves nothing half finished. `reach` is the most that policy allows; `patience_seconds` is
    how long a request waits for a replica to appear when nobody can be asked.
    """

    def __init__(
        self,
        rosters: Rosters,
        local: LocalAnswers,
        remote: NodeAnswers,
        *,
        reach: Reach = "network",
        patience_seconds: float = PATIENCE_SECONDS,
        random: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rosters = rosters
        self._local = local
        self._remote = remote
        self._reach: Reach = reach
        self._patience_seconds = patience_seconds
        self._random = (random or Random()).random  # noqa: S311 - spreads load, keeps no secret
        self._clock = clock
        self._indexes = IndexCache(clock)
        self._outstanding: dict[tuple[NodeId, ModelName], int] = {}
        self._change = asyncio.Event()
        self._stats = RouterStats()
        rosters.on_change(lambda _: self._change.set())
        local.on_change(self._change.set)

    def stats(self) -> RouterStats:
        """The live counts; read, do not change."""
        return self._stats

    async def answer(self, request: InferenceRequest) -> AsyncGenerator[Part, None]:
        """Answer `request` within its deadline.

        Raises, besides what the caller did wrong: `model_not_found`, `unsupported_capability`, `no_replica`,
        `overloaded` before the first piece; `replica_lost`, `resume_diverged` after it; `deadline_exceeded`.
        """
        if request.resume is not None:
            raise FelloeError("internal", "a request that resumes goes to a replica, not to a router")
        self._stats.requests += 1
        interruption = Interruption()
        timer = asyncio.get_running_loop().call_later(request.deadline, interruption.fire, _deadline_error())
        journey = Journey(request, self._clock() + request.deadline, self._patience_seconds)
        try:
            while not journey.complete:
                target = await self._target(journey, interruption)
                try:
                    async with aclosing(self._attempt(journey, target, interruption)) as parts:
                        async for part in parts:
                            yield part
                except FelloeError as error:
                    journey.failed(target, self._issued_at(target), error)
                    self._stats.retried += 1
        except FelloeError:
            if journey.progress.begun:
                self._stats.broken += 1
            raise
        finally:
            timer.cancel()

    async def _attempt(
        self, journey: Journey, target: Target, interruption: Interruption
    ) -> AsyncGenerator[Part, None]:
        """The parts of one replica's answer that the client is to get; the last piece only together with `Done`."""
        held: Piece | None = None
        whole = journey.request.kind == "embedding"
        journey.begin()
        self._count_in(target, journey.request.model)
        try:
            async with aclosing(interruption.guard(self._ask(journey, target))) as parts:
                async for part in parts:
                    if held is not None:
                        self._deliver(journey, target, held)
                        yield held
                        held = None
                    if isinstance(part, Done):
                        journey.complete = True
                        yield part
                        return
                    if FINISH_MARK in part.frames or whole:
                        held = part
                    else:
                        self._deliver(journey, target, part)
                        yield part
            raise FelloeError("replica_lost", "an answer ended before it was complete")
        finally:
            self._count_out(target, journey.request.model)

    def _ask(self, journey: Journey, target: Target) -> AsyncGenerator[Part, None]:
        request = journey.next_request(self._clock())
        if target.record is None:
            return self._local.answer(request)
        return self._remote.answer(target.record, request)

    def _deliver(self, journey: Journey, target: Target, piece: Piece) -> None:
        now = self._clock()
        if journey.first_piece_due:
            gap = journey.first_piece(target, now)
            if gap is not None:
                self._stats.record_gap(gap)
        journey.delivered_at = now
        journey.progress.take(piece)

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

    async def _target(self, journey: Journey, interruption: Interruption) -> Target:
        while True:
            self._change.clear()
            target = self._pick(journey)
            if target is not None:
                return target
            seconds = min(_LONGEST_NAP, journey.wait(self._clock()))
            with interruption:
                # It looks again without being told, too: this node's own replicas may change unheard.
                await _wait(self._change, seconds)

    def _pick(self, journey: Journey) -> Target | None:
        roster = self._rosters.snapshot()
        local = self._local_target(journey, roster)
        if rules.narrower(self._reach, journey.request.reach) == "device":
            offers = NO_OFFERS
            target = self._choose(journey, roster, local, offers)
        else:
            offers = self._indexes.get(roster).get(journey.request.model)
            target = self._choose(journey, roster, local, offers)
            if target is None:
                offers = self._indexes.get(roster, fresh=True).get(journey.request.model)
                target = self._choose(journey, roster, local, offers)
        if target is None and not journey.tried:
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


def _deadline_error() -> FelloeError:
    return FelloeError("deadline_exceeded", "the answer was not complete in time")


async def _wait(change: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await change.wait()
