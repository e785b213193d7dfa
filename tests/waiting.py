"""Waiting for what no event announces."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Return as soon as `condition` is true; the test fails where it waits when that takes more than `seconds`."""
    __tracebackhide__ = True  # the failure shows the caller's line, which holds the condition
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    while not condition():
        if clock() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for what this line names")
        await asyncio.sleep(0.01)
