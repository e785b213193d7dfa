"""Taking this node out of the network without breaking an answer: nothing new, what runs ends, then the node stops."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable

from felloe import __version__
from felloe.console.messages import DrainStep
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName
from felloe.domain.ports import Rosters
from felloe.gateway.server import Gateway
from felloe.mesh.exchange import Exchange
from felloe.routing.admission import Admission
from felloe.routing.model_index import ModelIndex

logger = logging.getLogger(__name__)

LONGEST_SECONDS = 86_400.0
_LOOK_SECONDS = 0.25
_LOOKS_PER_STEP = 40  # who follows must hear something now and then, to know that the node lives


class Draining:
    """Owns the one drain of a node. It belongs to the node: whoever asked for it may go away.

    First this node's replicas take nothing new, so that other nodes ask elsewhere and its own clients are answered by
    other nodes; when what they run has ended, the gateway takes nothing new either and lets its clients' answers end.
    `stop` then ends the node. `state/loaded.json` stays as it is: the next start loads the same models.
    """

    def __init__(
        self,
        admission: Admission,
        gateway: Gateway,
        exchange: Exchange,
        rosters: Rosters,
        *,
        stop: Callable[[], None],
    ) -> None:
        self._admission = admission
        self._gateway = gateway
        self._exchange = exchange
        self._rosters = rosters
        self._stop = stop
        self._until = 0.0
        self._work: asyncio.Task[None] | None = None

    def begin(self, timeout_seconds: float) -> None:
        """Drain from now on for at most `timeout_seconds`; of a drain that is under way only the time left changes.

        Raises `invalid_value` for what is no such time.
        """
        if not 0 <= timeout_seconds <= LONGEST_SECONDS or not math.isfinite(timeout_seconds):
            raise FelloeError("invalid_value", f"a drain takes 0 to {LONGEST_SECONDS:.0f} seconds")
        self._until = asyncio.get_running_loop().time() + timeout_seconds
        if self._work is None:
            logger.info("draining for at most %.0f s", timeout_seconds)
            self._work = asyncio.create_task(self._drain(), name="drain")

    def look(self) -> DrainStep:
        """What runs here now, and which models only this node serves."""
        return DrainStep(running=self._running(), only_here=self._models_only_here())

    async def steps(self) -> AsyncGenerator[DrainStep, None]:
        """How far the drain has come, at each change; the last step is `ended`. Raises `internal` before `begin`."""
        work = self._work
        if work is None:
            raise FelloeError("internal", "this node does not drain")
        alone = self._models_only_here()
        told: DrainStep | None = None
        looks = 0
        while not work.done():
            step = DrainStep(running=self._running(), only_here=alone)
            if step != told or looks % _LOOKS_PER_STEP == 0:
                told = step
                yield step
            looks += 1
            await asyncio.wait((work,), timeout=_LOOK_SECONDS)
        yield DrainStep(running=self._running(), only_here=alone, ended=True)

    async def close(self) -> None:
        """Give the drain up, because the node stops now."""
        if self._work is not None and not self._work.done():
            self._work.cancel()
            await asyncio.wait((self._work,))

    async def _drain(self) -> None:
        ending = asyncio.create_task(self._let_end(), name="drain-answers")
        try:
            while not ending.done() and (left := self._until - asyncio.get_running_loop().time()) > 0:
                # Looked at often, because whoever asks again may change the time that is left.
                await asyncio.wait((ending,), timeout=min(left, _LOOK_SECONDS))
        finally:
            ending.cancel()
            await asyncio.wait((ending,))
        if ending.cancelled():
            logger.warning("%d answers still run after the drain's time; they go on elsewhere", self._running())
        self._stop()

    async def _let_end(self) -> None:
        try:
            await self._admission.drain()
            await self._gateway.stop(LONGEST_SECONDS)
            logger.info("drained")
        except Exception:
            logger.exception("the drain failed; the node stops all the same")

    def _running(self) -> int:
        """Answers that are made here, and those that this node's own clients get from other nodes."""
        return sum(self._admission.load().active.values()) + self._exchange.asked

    def _models_only_here(self) -> tuple[ModelName, ...]:
        index = ModelIndex(self._rosters.snapshot(), __version__)
        here = {replica.model.name for replica in self._admission.replicas() if replica.state == "ready"}
        return tuple(sorted(name for name in here if not index.get(name).ready))
