"""Ending a wait from outside without ever touching what happens between waits."""

import asyncio
from types import TracebackType
from typing import Any

from felloe.domain.errors import FelloeError


class Interruption:
    """A context for one wait of an async generator, which a timer or an event may end with an error.

    `asyncio.timeout` must not span a `yield`: it would cancel the consumer's own code. This one cancels the task only
    while it is inside the context; an error that comes in between is raised at the next wait.
    """

    __slots__ = ("_cancelling", "_error", "_sent", "_task")

    def __init__(self) -> None:
        self._error: FelloeError | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._sent = False

    def fire(self, error: FelloeError) -> None:
        """End the current or the next wait with `error`."""
        self._error = error
        if self._task is not None and not self._sent:
            self._sent = True
            self._task.cancel()

    def __enter__(self) -> None:
        if self._error is not None:
            raise self._error
        task = self._task = asyncio.current_task()
        if task is not None:
            self._cancelling = task.cancelling()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if not self._sent or task is None:
            return
        self._sent = False
        only_ours = task.uncancel() <= self._cancelling
        if only_ours and kind is not None and issubclass(kind, asyncio.CancelledError) and self._error is not None:
            raise self._error from error
