"""Blocking work in a thread that is never left behind."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


async def to_the_end(work: Callable[[Callable[[], bool]], _Result]) -> _Result:
    """Run blocking work in a thread. When the caller is cancelled, `work` is told by its argument, and waited for:
    nobody should look at files that a thread still writes.
    """
    stop = threading.Event()
    running = asyncio.ensure_future(asyncio.to_thread(work, stop.is_set))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([running])
        raise
