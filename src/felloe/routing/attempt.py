"""One replica's answer on its way to the client: what is counted, held back or told apart as it passes."""

from collections.abc import Awaitable, Callable, Generator
from typing import Any

from felloe.domain.ports import Deliver
from felloe.domain.requests import Piece
from felloe.routing.journey import Journey
from felloe.routing.rules import FINISH_MARK
from felloe.routing.stats import RouterStats
from felloe.routing.targets import Target


class Attempt:
    """Takes the pieces of one replica's answer and passes them on at once, but for the one that completes it.

    `reader_failed` tells that an error came from the client's side, so that no other replica is to blame for it.
    """

    __slots__ = ("_clock", "_deliver", "_held", "_journey", "_stats", "_target", "_whole", "reader_failed")

    def __init__(
        self, journey: Journey, target: Target, deliver: Deliver, stats: RouterStats, clock: Callable[[], float]
    ) -> None:
        self.reader_failed = False
        self._journey = journey
        self._target = target
        self._deliver = deliver
        self._stats = stats
        self._clock = clock
        self._held: Piece | None = None
        self._whole = journey.request.kind == "embedding"

    def take(self, piece: Piece) -> Awaitable[None] | None:
        """Pass `piece` on (a `Deliver`). The last one, which completes the answer, waits for `finish`."""
        if FINISH_MARK in piece.frames or self._whole or self._held is not None:
            return self._hold(piece)
        return self._pass(piece)

    async def finish(self) -> None:
        """The replica has said that its answer is complete."""
        if self._held is not None:
            behind = self._pass(self._held)
            if behind is not None:
                await behind

    def _hold(self, piece: Piece) -> Awaitable[None] | None:
        held = self._held
        if self._whole or FINISH_MARK in piece.frames:
            self._held = piece
            return None if held is None else self._pass(held)
        self._held = None
        if held is not None:
            piece = Piece(piece.number, held.ids + piece.ids, held.frames + piece.frames)
        return self._pass(piece)

    def _pass(self, piece: Piece) -> Awaitable[None] | None:
        now = self._clock()
        journey = self._journey
        if journey.first_piece_due:
            gap = journey.first_piece(self._target, now)
            if gap is not None:
                self._stats.record_gap(gap)
        journey.delivered_at = now
        journey.progress.take(piece)
        try:
            behind = self._deliver(piece)
        except BaseException:
            self.reader_failed = True
            raise
        return None if behind is None else _Behind(self, behind)


class _Behind:
    """The client is behind; what it fails with is its own failure. It need not be awaited."""

    __slots__ = ("_attempt", "_behind")

    def __init__(self, attempt: Attempt, behind: Awaitable[None]) -> None:
        self._attempt = attempt
        self._behind = behind

    def __await__(self) -> Generator[Any, Any, None]:
        try:
            return (yield from self._behind.__await__())
        except Exception:
            self._attempt.reader_failed = True
            raise
