"""Carrying out a resume by replay: answer from the start, skip what was delivered if it is the same."""

import hashlib
from collections.abc import Awaitable

from felloe.domain.errors import FelloeError
from felloe.domain.ports import Deliver
from felloe.domain.requests import Piece, ReplayResume


class Replay:
    """Delivers what comes after the first `resume.length` bytes of an answer that it takes from the start.

    The cut may fall inside a piece, for replicas group events differently. Raises `resume_diverged` before anything
    is delivered when the bytes differ or the answer ends within them. A replica that dies within them has said
    nothing about what it would have answered.
    """

    __slots__ = ("_deliver", "_digest", "_left", "_resume", "_skipping", "_tokens_skipped")

    def __init__(self, resume: ReplayResume, deliver: Deliver) -> None:
        self._resume = resume
        self._deliver = deliver
        self._left = resume.length
        self._digest = hashlib.blake2b(digest_size=32)
        self._tokens_skipped = 0
        self._skipping = True

    def take(self, piece: Piece) -> Awaitable[None] | None:
        """Take the next piece of the whole answer."""
        if self._skipping:
            return self._skip(piece)
        return self._deliver(piece)

    def end(self) -> None:
        """The answer is complete."""
        if self._skipping:
            raise _diverged()

    def _skip(self, piece: Piece) -> Awaitable[None] | None:
        left = self._left
        self._digest.update(piece.frames[:left])
        rest = piece.frames[left:]
        self._left = left = left - (len(piece.frames) - len(rest))
        if left:
            self._tokens_skipped = piece.number
            return None
        if self._digest.digest() != self._resume.digest:
            raise _diverged()
        self._skipping = False
        if not rest:
            return None
        # Which ids made only the rest is known in one case: when nothing before held a token (a role frame).
        return self._deliver(Piece(piece.number, () if self._tokens_skipped else piece.ids, rest))


def _diverged() -> FelloeError:
    return FelloeError("resume_diverged", "another replica gave a different answer, which cannot be joined to this one")
