"""Where siblings meet: small interfaces that capabilities offer each other, wired by the composition root."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from felloe.domain.ids import ModelName
from felloe.domain.requests import Done, InferenceRequest, Piece
from felloe.domain.roster import Replica, Roster

Deliver = Callable[[Piece], Awaitable[None] | None]
"""Takes the next piece of an answer, in order.

None means: more may come at once. An awaitable means that the reader is behind: it must be awaited before the next
piece is delivered. It is called in the event loop, but not always in the task that asked, because a piece goes from
the socket it came from to the socket it goes to without a task switch. What it raises ends the answer with that error.
"""


class Answers(Protocol):
    """Anything that answers inference requests: an engine, a set of engines, a router over a whole network."""

    async def answer(self, request: InferenceRequest, deliver: Deliver) -> Done:
        """Deliver every piece, then return the accounts; raise `FelloeError` on failure.

        Nothing is delivered after it returned or raised. Cancelling the asking task cancels the work at once.
        """
        ...


class Replicas(Answers, Protocol):
    """The replicas of this node."""

    def replicas(self) -> tuple[Replica, ...]:
        """What is loaded here now, whatever its state."""
        ...

    def find(self, model: ModelName) -> Replica | None:
        """The ready replica for `model`, if there is one."""
        ...


class Rosters(Protocol):
    """The one owner of the roster snapshot."""

    def snapshot(self) -> Roster:
        """The newest snapshot; never waits."""
        ...

    def on_change(self, callback: Callable[[Roster], None]) -> None:
        """Call `callback` in the event loop after each change."""
        ...
