"""Carrying out a resume by replay: answer from the start, skip what was delivered if it is the same."""

import hashlib
from collections.abc import AsyncGenerator

from felloe.domain.errors import FelloeError
from felloe.domain.requests import Part, Piece, ReplayResume


async def replayed(parts: AsyncGenerator[Part, None], resume: ReplayResume) -> AsyncGenerator[Part, None]:
    """Yield what comes after the first `resume.length` bytes of the answer that `parts` gives from its start.

    The cut may fall inside a piece, for replicas group events differently. Raises `resume_diverged` before anything
    is yielded when the bytes differ or the answer ends within them. The caller closes `parts`.
    """
    left = resume.length
    digest = hashlib.blake2b(digest_size=32)
    tokens_skipped = 0
    async for part in parts:
        if not isinstance(part, Piece):
            break
        digest.update(part.frames[:left])
        rest = part.frames[left:]
        left -= len(part.frames) - len(rest)
        if left:
            tokens_skipped = part.number
            continue
        if digest.digest() != resume.digest:
            break
        if rest:
            # Which ids made only the rest is known in one case: when nothing before held a token (a role frame).
            yield Piece(part.number, () if tokens_skipped else part.ids, rest)
        async for later in parts:
            yield later
        return
    else:
        # The replica died within the prefix, which says nothing about what it would have answered.
        return
    raise FelloeError("resume_diverged", "another replica gave a different answer, which cannot be joined to this one")
