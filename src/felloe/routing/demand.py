"""Models that are wanted but run nowhere: asks the leader to load them, once for all who wait, and tells how long.

A model is *cold* while the network wants it served and no node within reach serves it. A request for it waits as long
as it says, up to a bound on how many wait; each gets the same answer of the leader. The leader is asked again every few
seconds while somebody waits, because another hub may lead by then and because what nobody asks for may be unloaded;
sooner while it has made no plan for the model or cannot be reached.
"""

import asyncio
import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName
from felloe.domain.serving import DemandAnswer
from felloe.routing.rules import LEAST_RETRY_AFTER, MOST_RETRY_AFTER

MOST_WAITING = 64
FIRST_ANSWER_SECONDS = 0.5
"""How long even a request that does not want to wait waits for what the leader says, to tell it on."""

_AGAIN_SECONDS = 5.0
_AGAIN_SOON_SECONDS = 1.0
_LONGEST_ASK_SECONDS = 10.0
_LONGEST_LOAD_SECONDS = 24 * 3600.0
_LONGEST_DETAIL = 500
_UNKNOWN_RETRY_AFTER = 5.0
_FINAL = frozenset({"model_not_found", "does_not_fit"})


class LoadsModels(Protocol):
    """What the network wants served, and the way to its leader."""

    def is_wanted(self, model: ModelName, /) -> bool:
        """Whether it is to be served, as far as this node has heard; never waits."""
        ...

    async def ask_for(self, model: ModelName, /) -> DemandAnswer:
        """Tell the leader that somebody waits for `model`. Raises `FelloeError` when it cannot be told or refuses."""
        ...


class _Ask:
    """What the leader said of one model, and who waits for it. Times as the clock tells them."""

    __slots__ = ("answered", "next_at", "ready_at", "refusal", "task", "trouble", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.task: asyncio.Task[None] | None = None
        self.next_at = -math.inf
        self.answered = False
        self.ready_at: float | None = None
        self.refusal: FelloeError | None = None
        self.trouble = ""


class Demand:
    """The one who asks for cold models on this node. At most `most_waiting` requests wait for one model.

    Bounded: names come from what the network wants served, never from what clients send.
    """

    def __init__(
        self, port: LoadsModels, *, most_waiting: int = MOST_WAITING, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._port = port
        self._most_waiting = most_waiting
        self._clock = clock
        self._asks: dict[ModelName, _Ask] = {}
        self._callbacks: list[Callable[[], None]] = []

    def is_wanted(self, model: ModelName) -> bool:
        """Whether the network wants `model` served."""
        return self._port.is_wanted(model)

    def on_answer(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the event loop when the leader has said something of a model."""
        self._callbacks.append(callback)

    @contextmanager
    def line(self, model: ModelName, *, ahead: bool = False) -> Generator[None]:
        """Wait for `model` inside. Raises `overloaded` when too many do; who is `ahead` is let in all the same."""
        self._forget_others(model)
        ask = self._asks.setdefault(model, _Ask())
        if ask.waiting >= self._most_waiting and not ahead:
            detail = f"{ask.waiting} requests wait for {model} to be loaded already"
            raise FelloeError("overloaded", detail, retry_after=self._retry_after(ask))
        ask.waiting += 1
        try:
            yield
        finally:
            ask.waiting -= 1

    def look(self, model: ModelName) -> bool:
        """Ask for `model` if it is time to; call it every moment inside `line`.

        Returns whether there is an answer. Raises `does_not_fit` or `model_not_found` when waiting is of no use.
        """
        ask = self._asks[model]
        if ask.task is None and self._clock() >= ask.next_at:
            # What was said before is old by now: nobody is refused for it.
            ask.refusal, ask.answered = None, False
            ask.task = asyncio.create_task(self._ask(model, ask))
        if ask.refusal is not None:
            refusal = ask.refusal
            raise FelloeError(refusal.code, refusal.detail, param=refusal.param, retry_after=refusal.retry_after)
        return ask.answered

    def not_yet(self, model: ModelName) -> FelloeError:
        """What to tell somebody who waits inside `line` and does not want to wait any longer."""
        ask = self._asks[model]
        left = None if ask.ready_at is None else ask.ready_at - self._clock()
        detail = f"the model {model} is being loaded"
        if left is not None and left > 0:
            detail += f", about {math.ceil(left)} s left"
        elif ask.trouble:
            detail = f"the model {model} is not loaded, and the leading hub was not reached ({ask.trouble})"
        return FelloeError("model_loading", detail, retry_after=self._retry_after(ask))

    async def close(self) -> None:
        """Give up what is being asked."""
        tasks = [ask.task for ask in self._asks.values() if ask.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _retry_after(self, ask: _Ask) -> float:
        left = 0.0 if ask.ready_at is None else ask.ready_at - self._clock()
        return min(MOST_RETRY_AFTER, max(LEAST_RETRY_AFTER, left)) if left > 0 else _UNKNOWN_RETRY_AFTER

    def _forget_others(self, model: ModelName) -> None:
        now = self._clock()
        done = [
            name
            for name, ask in self._asks.items()
            if name != model and not ask.waiting and ask.task is None and now >= ask.next_at
        ]
        for name in done:
            del self._asks[name]

    async def _ask(self, model: ModelName, ask: _Ask) -> None:
        again = _AGAIN_SOON_SECONDS
        try:
            async with asyncio.timeout(_LONGEST_ASK_SECONDS):
                answer = await self._port.ask_for(model)
            self._take(ask, answer)
            if answer.state != "wanted":
                again = _AGAIN_SECONDS
        except FelloeError as error:
            if error.code in _FINAL:
                ask.refusal, ask.answered, again = error, True, _AGAIN_SECONDS
            else:
                ask.trouble = error.code
        except TimeoutError:
            ask.trouble = "deadline_exceeded"
        finally:
            ask.task = None
            ask.next_at = self._clock() + again
        for callback in self._callbacks:
            callback()

    def _take(self, ask: _Ask, answer: DemandAnswer) -> None:
        """Note what the leader said. It is another node: what it sends is bounded before it is told on."""
        ask.answered, ask.trouble, ask.refusal = True, "", None
        seconds = answer.wait_seconds
        known = math.isfinite(seconds) and 0 < seconds <= _LONGEST_LOAD_SECONDS
        ask.ready_at = self._clock() + seconds if known else None
        if answer.state == "refused":
            words = "".join(letter for letter in answer.detail if letter.isprintable())[:_LONGEST_DETAIL]
            detail = words.rstrip(". ") or "nothing says why"
            ask.refusal = FelloeError("does_not_fit", detail, retry_after=MOST_RETRY_AFTER)
