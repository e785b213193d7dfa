"""Ending a wait from outside without ever touching what happens between waits."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Any, TypeVar

from felloe.domain.errors import FelloeError

T = TypeVar("T")


class Interruption:
    """Waits of an async generator that a timer or an event may end with an error.

    `asyncio.timeout` must not span a `yield`: it would cancel the consumer's own code. This one cancels the task only
    while it waits inside `with interruption` or for an item of `guard`; an error that comes in between is raised at
    the next wait. A real cancellation is never mistaken for an interruption.
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

    async def guard(self, source: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The items of `source`, each waited for as in `with interruption`, at a third of the cost. Closes `source`."""
        following = source.__anext__
        async with aclosing(source):
            while True:
                # As in `_enter`, in place: this runs for every token.
                if self._error is not None:
                    raise self._error
                task = self._task = asyncio.current_task()
                if task is not None:
                    self._cancelling = task.cancelling()
                try:
                    item = await following()
                except StopAsyncIteration:
                    self._leave(None)
                    return
                except BaseException as error:
                    self._leave(error)
                    raise
                if self._sent:
                    self._leave(None)
                self._task = None
                yield item

    def __enter__(self) -> None:
        self._enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(error)

    def _enter(self) -> None:
        if self._error is not None:
            raise self._error
        task = self._task = asyncio.current_task()
        if task is not None:
            self._cancelling = task.cancelling()

    def _leave(self, error: BaseException | None) -> None:
        task, self._task = self._task, None
        if not self._sent or task is None:
            return
        self._sent = False
        only_ours = task.uncancel() <= self._cancelling
        if only_ours and isinstance(error, asyncio.CancelledError) and self._error is not None:
            raise self._error from error
