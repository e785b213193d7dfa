"""How many bytes may pass: at a rate that the owner sets, and no faster than leaves room for answering requests."""

import asyncio
import time
from collections.abc import Awaitable, Callable

_LEAST_RATE = 2.0**20
_LEAST_SHARE, _MOST_SHARE = 1 / 32, 1 / 4
_WINDOW_SECONDS = 1.0
_FADING = 0.9
_BURST_SECONDS = 0.1
_LINGER_SECONDS = 1.0


def _never_busy() -> bool:
    return False


def _no_time_left() -> float:
    return 0.0


class Pacer:
    """One line that many transfers share.

    `rate` in bytes a second, 0: as fast as it goes. While requests are answered here, as `busy` says, and for a second
    after, a part of what passes otherwise passes, at least 1 MiB a second unless `rate` is less: a quarter where the
    processors have nothing else to do, as `idle` says (0 to 1), down to a 32nd where an engine needs all their time.
    `now` in seconds of a steady clock.
    """

    def __init__(
        self,
        rate: float,
        *,
        busy: Callable[[], bool] = _never_busy,
        idle: Callable[[], float] = _no_time_left,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rate = rate
        self._busy = busy
        self._idle = idle
        self._now = now
        self._sleep = sleep
        self._free_at = now()
        self._busy_until = float("-inf")
        self._measured = 0.0
        self._window_began, self._window_bytes = now(), 0

    async def take(self, size: int) -> None:
        """Return when `size` bytes may pass."""
        now = self._now()
        if self._busy():
            # One request follows the other: in the moment between them nothing may rush in before the next.
            self._busy_until = now + _LINGER_SECONDS
        busy = now < self._busy_until
        self._measure(size, now, busy)
        rate = self._allowed(busy)
        if rate <= 0:
            return
        # What was not used is not saved up, but for a moment.
        self._free_at = max(self._free_at, now - _BURST_SECONDS) + size / rate
        if self._free_at > now:
            await self._sleep(self._free_at - now)

    def _allowed(self, busy: bool) -> float:
        if not busy:
            return self._rate
        share = _LEAST_SHARE + self._idle() * (_MOST_SHARE - _LEAST_SHARE)
        rate = max(_LEAST_RATE, self._measured * share)
        return min(self._rate, rate) if self._rate > 0 else rate

    def _measure(self, size: int, now: float, busy: bool) -> None:
        """Keep in mind what the line can carry: the best second of late in which nothing held it back."""
        if now - self._window_began >= _WINDOW_SECONDS:
            rate = self._window_bytes / (now - self._window_began)
            self._measured = max(rate, self._measured * _FADING)
            self._window_began, self._window_bytes = now, 0
        if not busy:
            self._window_bytes += size
        else:
            self._window_began, self._window_bytes = now, 0
