"""This node's own replicas behind a bounded, fair queue: nothing reaches an engine but through here."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

from msgspec import Struct
from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName
from felloe.domain.ports import Deliver, Replicas
from felloe.domain.requests import Done, InferenceRequest, Kind, Piece, ReplayResume, TokenResume
from felloe.domain.roster import Load, Replica
from felloe.routing import rules
from felloe.routing.pace import Pace, Timing
from felloe.routing.replay import Replay
from felloe.routing.rules import Busy
from felloe.routing.waiting import Turn, WaitingLine

QUEUE_LIMIT = 64
_FIRST_GUESS_SECONDS = 2.0
_WEIGHT_OF_NEWEST = 0.2


class ModelCounts(Struct):
    """What this node did for one model since it started: requests by outcome, tokens and seconds. Never any text.

    `completion_tokens` are those made here, without what a resumed answer had got elsewhere.
    """

    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    expired: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    waiting_seconds: float = 0.0
    answering_seconds: float = 0.0

    def close(self, kind: Kind, tokens: int, done: Done | None, *, failed: bool) -> None:
        """Count one request that held a slot: complete with `done`, else `failed`, else cancelled by its asker."""
        if done is not None:
            self.answered += 1
            self.prompt_tokens += done.usage.prompt
            self.cached_tokens += done.usage.cached
        elif failed:
            self.failed += 1
        else:
            self.cancelled += 1
        if kind != "embedding":
            self.completion_tokens += tokens


class _Desk:
    """The state of one model."""

    __slots__ = ("active", "answer_seconds", "begun", "counts", "line", "measured", "model", "pace")

    def __init__(self, model: ModelName) -> None:
        self.model = model
        self.active = 0
        self.line = WaitingLine()
        self.counts = ModelCounts()
        self.answer_seconds = _FIRST_GUESS_SECONDS
        self.begun = 0
        self.pace = Pace()
        self.measured: object = None

    def pace_of(self, replica: Replica) -> Pace:
        """The pace of this very replica: another file, engine or place begins anew."""
        this = (replica.model.digest, replica.engine, replica.parts, replica.slots)
        if this != self.measured:
            self.measured, self.pace = this, Pace()
        return self.pace


class Admission:
    """Answers requests with this node's replicas, as many at once as they have slots; the others wait in turn.

    Errors besides the engine's own: `model_not_found`, `no_replica`, `draining`, `overloaded` (with `retry_after`)
    when `queue_limit` requests wait for the model already, `deadline_exceeded` while waiting. A full queue still takes
    an asker who has less than others in it, at the cost of whoever has most: one that floods starves nobody. Resumed
    requests wait ahead of others and may exceed the limit twofold: somebody is in the middle of reading them.
    """

    def __init__(
        self,
        replicas: Replicas,
        *,
        queue_limit: int = QUEUE_LIMIT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replicas = replicas
        self._queue_limit = queue_limit
        self._clock = clock
        self._desks: dict[ModelName, _Desk] = {}
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._callbacks: list[Callable[[], None]] = []
        self._speed_callbacks: list[Callable[[], None]] = []

    def replicas(self) -> tuple[Replica, ...]:
        """What is loaded here, whatever its state, with the speed that was measured."""
        return tuple(map(self._timed, self._replicas.replicas()))

    def find(self, model: ModelName) -> Replica | None:
        """The ready replica for `model`, with the speed that was measured; None while this node drains."""
        replica = None if self._draining else self._replicas.find(model)
        return None if replica is None else self._timed(replica)

    def _timed(self, replica: Replica) -> Replica:
        desk = self._desks.get(replica.model.name)
        told = 0.0 if desk is None or replica.state != "ready" else desk.pace_of(replica).told
        return replace(replica, speed=told) if told else replica

    def busy(self, model: ModelName) -> Busy:
        """How many requests for `model` are being answered and wait here now."""
        desk = self._desks.get(model)
        return Busy(0, 0) if desk is None else Busy(desk.active, len(desk.line))

    def load(self) -> Load:
        """What to tell the network."""
        return Load(
            active={model: desk.active for model, desk in self._desks.items() if desk.active},
            waiting={model: len(desk.line) for model, desk in self._desks.items() if desk.line},
            draining=self._draining,
            served={model: desk.begun for model, desk in self._desks.items() if desk.begun},
        )

    def counts(self) -> dict[ModelName, ModelCounts]:
        """Counts by model, only of models that were ever ready here."""
        return {model: desk.counts for model, desk in self._desks.items()}

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the event loop after each change of `load()`."""
        self._callbacks.append(callback)

    def on_speed(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the event loop when the speed of a replica in `replicas()` has changed: seldom."""
        self._speed_callbacks.append(callback)

    def replicas_changed(self) -> None:
        """Tell that a replica came, went or changed: waiting requests start, or fail so that others may take them."""
        for desk in self._desks.values():
            self._seat(desk)
        self._changed()

    async def drain(self) -> None:
        """Refuse what is new and what waits with `draining`, then wait until what runs has ended."""
        self._draining = True
        for desk in self._desks.values():
            _dismiss(desk, "draining", "this node is stopping")
        self._changed()
        await self._idle.wait()

    async def answer(self, request: InferenceRequest, deliver: Deliver, asker: str = "") -> Done:
        """Answer when a slot is free; `asker` is the node that asks, for fairness (empty: this one)."""
        desk = await self._enter(request, asker)
        started = self._clock()
        first = number = len(request.resume.ids) if isinstance(request.resume, TokenResume) else 0
        failed = False
        done: Done | None = None
        timing = Timing()

        def count(piece: Piece) -> Awaitable[None] | None:
            nonlocal number
            number = piece.number
            if not timing.begun:
                timing.begin(piece, self._clock())
                return deliver(piece)
            behind = deliver(piece)
            if behind is not None:
                timing.slow()
            return behind

        try:
            done = await self._ask(request, count)
            if request.kind == "embedding":
                self._measure(desk, done.usage.prompt, self._clock() - started, whole=True)
            else:
                self._measure(desk, *timing.result(number, self._clock()))
            return done
        except Exception:
            failed = True
            raise
        finally:
            desk.counts.close(request.kind, number - first, done, failed=failed)
            self._leave(desk, started)

    def _measure(self, desk: _Desk, tokens: int, seconds: float, *, whole: bool = False) -> None:
        """An answer said this of its replica's pace; `whole` when it was one piece, for the tokens of its input."""
        replica = self._replicas.find(desk.model)
        if replica is None or (whole and "completion" in replica.model.capabilities):
            # A model that does both is measured by what it writes.
            return
        if desk.pace_of(replica).add(tokens, seconds):
            for callback in self._speed_callbacks:
                callback()

    async def _ask(self, request: InferenceRequest, deliver: Deliver) -> Done:
        if not isinstance(request.resume, ReplayResume):
            return await self._replicas.answer(request, deliver)
        replay = Replay(request.resume, deliver)
        done = await self._replicas.answer(replace(request, resume=None), replay.take)
        replay.end()
        return done

    async def _enter(self, request: InferenceRequest, asker: str) -> _Desk:
        if self._draining:
            raise FelloeError("draining", "this node is stopping")
        replica = self._replicas.find(request.model)
        if replica is None:
            self._refuse_missing(request.model)
        desk = self._desks.get(request.model)
        if desk is None:
            desk = self._desks[request.model] = _Desk(request.model)
        if desk.active < max(1, replica.slots) and not desk.line:
            self._take_slot(desk)
            self._changed()
            return desk
        await self._wait(desk, request, replica.slots, asker)
        return desk

    def _refuse_missing(self, model: ModelName) -> NoReturn:
        if any(replica.model.name == model for replica in self._replicas.replicas()):
            raise FelloeError("no_replica", f"the model {model} is not ready on this node")
        raise FelloeError("model_not_found", f"this node does not have the model {model}")

    async def _wait(self, desk: _Desk, request: InferenceRequest, slots: int, asker: str) -> None:
        waiting = len(desk.line)
        resumed = request.resume is not None
        if waiting >= self._queue_limit * (2 if resumed else 1):
            seconds = rules.retry_after(waiting, slots, desk.answer_seconds)
            full = FelloeError("overloaded", f"{waiting} requests wait for {desk.model} already", retry_after=seconds)
            desk.counts.refused += 1
            displaced = None if resumed else desk.line.displace(asker)
            if displaced is None:
                raise full
            if not displaced.done():
                displaced.set_exception(full)
        turn: Turn = asyncio.get_running_loop().create_future()
        desk.line.add(turn, asker, ahead=resumed)
        self._changed()
        since = self._clock()
        try:
            async with asyncio.timeout(request.deadline):
                await turn
        except TimeoutError:
            desk.counts.expired += 1
            self._give_up(desk, turn, asker)
            raise FelloeError("deadline_exceeded", f"no slot for {desk.model} became free in time") from None
        except asyncio.CancelledError:
            desk.counts.cancelled += 1
            self._give_up(desk, turn, asker)
            raise
        finally:
            desk.counts.waiting_seconds += self._clock() - since

    def _give_up(self, desk: _Desk, turn: Turn, asker: str) -> None:
        desk.line.remove(turn, asker)
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            # It got a slot in the very turn of the loop in which it was cancelled: the slot goes on to the next.
            self._free_slot(desk)
        self._changed()

    def _leave(self, desk: _Desk, started: float) -> None:
        seconds = self._clock() - started
        desk.counts.answering_seconds += seconds
        desk.answer_seconds += _WEIGHT_OF_NEWEST * (seconds - desk.answer_seconds)
        self._free_slot(desk)
        self._changed()

    def _take_slot(self, desk: _Desk) -> None:
        desk.active += 1
        desk.begun += 1
        self._idle.clear()

    def _free_slot(self, desk: _Desk) -> None:
        desk.active -= 1
        self._seat(desk)
        if not any(other.active for other in self._desks.values()):
            self._idle.set()

    def _seat(self, desk: _Desk) -> None:
        """Give free slots to who is next; without a replica send everybody away, for another node may have one."""
        if not desk.line:
            return
        replica = self._replicas.find(desk.model)
        if replica is None:
            _dismiss(desk, "no_replica", f"the model {desk.model} went away while the request waited")
            return
        while desk.active < max(1, replica.slots):
            turn = desk.line.next()
            if turn is None:
                return
            self._take_slot(desk)
            turn.set_result(None)

    def _changed(self) -> None:
        for callback in self._callbacks:
            callback()


def _dismiss(desk: _Desk, code: str, detail: str) -> None:
    while (turn := desk.line.next()) is not None:
        desk.counts.refused += 1
        turn.set_exception(FelloeError(code, detail))
