"""Dials one address after the other, and the next one in parallel when one is slow: one that swallows packets delays
nobody for long."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

HEAD_START_SECONDS = 1.0
MOST_AT_ONCE = 3

Session = TypeVar("Session")


async def first_to_answer(
    urls: Sequence[str],
    dial: Callable[[str], Awaitable[Session | None]],
    part: Callable[[Session], None],
    *,
    head_start: float = HEAD_START_SECONDS,
) -> tuple[str, Session] | None:
    """The first session that stands, and its address; None when nobody answers.

    `dial` gives a session with whoever is at an address, None when nobody answers. Each address gets `head_start`
    seconds before the next one is dialled too; one that fails gives its turn away at once. Sessions that come too late
    are handed to `part`.
    """
    waiting = list(urls)
    dials: dict[asyncio.Task[Session | None], str] = {}
    try:
        while waiting or dials:
            has_room = bool(waiting) and len(dials) < MOST_AT_ONCE
            if has_room:
                url = waiting.pop(0)
                dials[asyncio.create_task(_await(dial(url)), name="mesh-dial")] = url
            may_go_on = bool(waiting) and len(dials) < MOST_AT_ONCE
            done, _ = await asyncio.wait(
                dials, timeout=head_start if may_go_on else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                session = task.result()
                url = dials.pop(task)
                if session is not None:
                    return url, session
        return None
    finally:
        await _call_off(list(dials), part)


async def _call_off(tasks: list[asyncio.Task[Session | None]], part: Callable[[Session], None]) -> None:
    for task in tasks:
        task.cancel()
    for late in await asyncio.gather(*tasks, return_exceptions=True):
        if late is not None and not isinstance(late, BaseException):
            part(late)


async def _await(work: Awaitable[Session | None]) -> Session | None:
    return await work
