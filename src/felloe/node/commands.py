"""What hubs may tell a node to do: to drain. Both sides; the message server lets hubs alone give commands."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol

from msgspec import Struct

from felloe.console.messages import DrainStep
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.ports import Rosters
from felloe.node.draining import Draining

DRAIN = "drain"
"""The command's name, for `NodeCommands.serve`."""

_ASK_SECONDS = 1.0
_ASKS_PER_STEP = 10  # who follows must hear something now and then, to know that the node lives
_GRACE_SECONDS = 60.0
_UNANSWERED = ("network_unreachable", "deadline_exceeded", "overloaded")


class DrainOrder(Struct, array_like=True, frozen=True):
    """Drain within so many seconds; None only asks how far it is."""

    timeout_seconds: float | None = None


class DrainState(Struct, array_like=True, frozen=True):
    """How far it is: see `DrainStep`."""

    running: int = 0
    only_here: tuple[ModelName, ...] = ()


class DrainCommand:
    """The node's side."""

    def __init__(self, draining: Draining) -> None:
        self._draining = draining

    async def on_request(self, order: DrainOrder) -> DrainState:
        """Begin, or only tell. Raises `invalid_value` for what is no time."""
        if order.timeout_seconds is not None:
            self._draining.begin(order.timeout_seconds)
        now = self._draining.look()
        return DrainState(now.running, tuple(map(ModelName, now.only_here)))


class Teller(Protocol):
    """Gives a node a command, as `NodeClient.tell` does."""

    async def __call__(self, node: NodeId, name: str, question: Struct, answer: type[DrainState], /) -> DrainState: ...


class RemoteDrain:
    """A hub's side: another node's drain, told and followed. `clock` counts seconds."""

    def __init__(
        self,
        node: NodeId,
        name: str,
        tell: Teller,
        rosters: Rosters,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._node = node
        self._name = name
        self._tell = tell
        self._rosters = rosters
        self._clock = clock
        self._sleep = sleep

    async def steps(self, timeout_seconds: float) -> AsyncGenerator[DrainStep, None]:
        """How far the drain has come; the last step is `ended`, once the node is gone.

        Raises `node_unreachable` when it does not take the command, `deadline_exceeded` when it does not stop.
        """
        begun, asks, process = self._clock(), 0, self._process()
        last = await self._begin(timeout_seconds)
        yield self._step(last)
        while process is not None and self._process() == process:
            if self._clock() - begun > timeout_seconds + _GRACE_SECONDS:
                raise FelloeError("deadline_exceeded", f"{self._name} was told to drain but has not stopped")
            await self._sleep(_ASK_SECONDS)
            now = await self._look()
            asks += 1
            if now is not None and (now != last or asks % _ASKS_PER_STEP == 0):
                last = now
                yield self._step(now)
        # A node stops before its time only when nothing runs any more, whatever was heard last.
        in_time = self._clock() - begun < timeout_seconds
        yield DrainStep(running=0 if in_time else last.running, only_here=last.only_here, ended=True, node=self._name)

    async def _begin(self, timeout_seconds: float) -> DrainState:
        try:
            return await self._tell(self._node, DRAIN, DrainOrder(timeout_seconds), DrainState)
        except FelloeError as error:
            if error.code not in _UNANSWERED:
                raise
            detail = f"{self._name} did not take the command: {error.detail}; run `felloe drain` on it"
            raise FelloeError("node_unreachable", detail) from error

    async def _look(self) -> DrainState | None:
        try:
            return await self._tell(self._node, DRAIN, DrainOrder(), DrainState)
        except FelloeError as error:
            if error.code not in _UNANSWERED:
                raise
            return None

    def _step(self, state: DrainState) -> DrainStep:
        return DrainStep(running=state.running, only_here=state.only_here, node=self._name)

    def _process(self) -> float | None:
        """The start of the process that runs there now; None when the node is gone."""
        member = self._rosters.snapshot().members.get(self._node)
        return member.record.started_at if member is not None and member.alive else None
