"""Where siblings meet: small interfaces that capabilities offer each other, wired by the composition root."""

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from felloe.domain.ids import ModelName
from felloe.domain.requests import InferenceRequest, Part
from felloe.domain.roster import Replica, Roster


class Answers(Protocol):
    """Anything that answers inference requests: an engine, a set of engines, a router over a whole network."""

    def answer(self, request: InferenceRequest) -> AsyncGenerator[Part, None]:
        """Yield `Piece`s, then one `Done`; raise `FelloeError` instead of `Done` on failure.

        Closing the generator early cancels the work at once. Whoever opens it closes it (`contextlib.aclosing`).
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
