"""The one timer of an answer."""

import asyncio
from collections.abc import Awaitable

from felloe.domain.errors import FelloeError
from felloe.domain.requests import Done


async def answered_within(seconds: float, answer: Awaitable[Done]) -> Done:
    """What `answer` returns; `deadline_exceeded` when it takes longer. A real cancellation stays one."""
    timeout = asyncio.timeout(seconds)
    try:
        async with timeout:
            return await answer
    except TimeoutError:
        if not timeout.expired():
            raise
        raise FelloeError("deadline_exceeded", "the answer was not complete in time") from None
