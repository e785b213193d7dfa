"""Who waits for a slot of one model, and who is next."""

import asyncio
from collections import deque

Turn = asyncio.Future[None]
"""Resolved when the waiter has got a slot, failed when it never will."""


class WaitingLine:
    """First come first served for each asker, askers in turn; requests that resume go ahead of those that begin.

    Whoever decides that the line is full may have one asker's turn make room for another's. Waiters that were cancelled
    count until they are removed and are never next.
    """

    __slots__ = ("_ahead", "_askers", "_length")

    def __init__(self) -> None:
        self._ahead: deque[Turn] = deque()
        self._askers: dict[str, deque[Turn]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, turn: Turn, asker: str, *, ahead: bool) -> None:
        """Put `turn` at the end of its asker's row, or of the row that goes ahead."""
        self._length += 1
        if ahead:
            self._ahead.append(turn)
        else:
            self._askers.setdefault(asker, deque()).append(turn)

    def remove(self, turn: Turn, asker: str) -> None:
        """Take `turn` out if it still waits."""
        for row in (self._ahead, self._askers.get(asker)):
            if row and turn in row:
                row.remove(turn)
                self._length -= 1
        if asker in self._askers and not self._askers[asker]:
            del self._askers[asker]

    def displace(self, asker: str) -> Turn | None:
        """Take out the newest turn of whoever waits with the most, so that `asker` may wait, too.

        None when nobody waits with at least two turns more than `asker`. Requests that resume are never displaced.
        """
        own = len(self._askers.get(asker, ()))
        greediest = max(self._askers, key=lambda other: len(self._askers[other]), default=None)
        if greediest is None or len(self._askers[greediest]) < own + 2:
            return None
        self._length -= 1
        return self._askers[greediest].pop()

    def next(self) -> Turn | None:
        """Take out whose turn it is; None when nobody waits."""
        while self._length:
            turn = self._take()
            if not turn.done():
                return turn
        return None

    def _take(self) -> Turn:
        self._length -= 1
        if self._ahead:
            return self._ahead.popleft()
        asker, row = next(iter(self._askers.items()))
        turn = row.popleft()
        del self._askers[asker]
        if row:
            # To the back: dicts keep the order of insertion.
            self._askers[asker] = row
        return turn
