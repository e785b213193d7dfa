"""How fast a replica answers, measured on the answers that it gives."""

from collections import deque
from statistics import median

from felloe.domain.requests import Piece

_LEAST_TOKENS = 8
_LEAST_ANSWERS = 3
_MOST_ANSWERS = 9
_TOLERANCE = 0.2


class Pace:
    """Tokens a second of one answer at one replica: the median of its last nine answers of eight tokens or more.

    A median, because the first answer after a start is slow, and one that comes in a burst looks faster than any engine
    is. `told` is the figure for others, 0 before the third answer. It has two digits and follows only what is clearly
    off, so that it changes seldom.
    """

    __slots__ = ("_speeds", "told")

    def __init__(self) -> None:
        self.told = 0.0
        self._speeds: deque[float] = deque(maxlen=_MOST_ANSWERS)

    def add(self, tokens: int, seconds: float) -> bool:
        """An answer took so long for so many tokens. Returns whether `told` has changed."""
        if tokens < _LEAST_TOKENS or seconds <= 0:
            return False
        self._speeds.append(tokens / seconds)
        speed = median(self._speeds)
        if len(self._speeds) < _LEAST_ANSWERS or abs(speed - self.told) <= _TOLERANCE * self.told:
            return False
        self.told = float(f"{speed:.2g}")
        return True


class Timing:
    """What one answer says of the pace: from its first piece to its end, so that neither queue nor prompt count.

    A reader that was behind slowed it down; then it says nothing. Nobody can tell that of the first piece, with which
    a stream to the client begins.
    """

    __slots__ = ("_began_at", "_first", "_slowed")

    def __init__(self) -> None:
        self._began_at: float | None = None
        self._first = 0
        self._slowed = False

    @property
    def begun(self) -> bool:
        """Whether the first piece has come."""
        return self._began_at is not None

    def begin(self, piece: Piece, now: float) -> None:
        """The first piece has come."""
        self._first = piece.number
        self._began_at = now

    def slow(self) -> None:
        """The reader held a later piece up."""
        self._slowed = True

    def result(self, number: int, now: float) -> tuple[int, float]:
        """Tokens and seconds of an answer that has ended with token `number`; (0, 0) when it says nothing."""
        if self._began_at is None or self._slowed:
            return 0, 0.0
        return number - self._first, now - self._began_at
