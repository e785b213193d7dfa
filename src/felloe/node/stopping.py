"""Stopping parts one after the other, whatever each of them does."""

import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)


async def safely(stop: Callable[[], Awaitable[object]]) -> None:
    """Stop one part; a failure is logged and must not keep the others running."""
    try:
        await stop()
    except Exception:
        logger.exception("a part did not stop cleanly")
