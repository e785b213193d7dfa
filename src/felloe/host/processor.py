"""How much of its processors' time a machine has left."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

_LOOK_SECONDS = 1.0


class IdleShare:
    """The share of the last second or so in which the processors that this process may use had nothing to do.

    Where a control group's quota leaves less than the processors could do, it tells too much.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked_at = clock()
        self._idle, self._total = _times()
        self._share = 0.0

    def __call__(self) -> float:
        """Between 0 (all of them were busy) and 1; 0 also before the first second is over."""
        now = self._clock()
        if now - self._looked_at >= _LOOK_SECONDS:
            idle, total = _times()
            if total > self._total:
                self._share = min(1.0, max(0.0, (idle - self._idle) / (total - self._total)))
            self._looked_at, self._idle, self._total = now, idle, total
        return self._share


def _times() -> tuple[float, float]:
    """Seconds of all usable processors since they started: without work, and all."""
    every: list[Any] = psutil.cpu_times(percpu=True)
    if sys.platform == "linux":
        every = [every[number] for number in os.sched_getaffinity(0) if number < len(every)]
    idle = sum(float(times.idle) + float(getattr(times, "iowait", 0.0)) for times in every)
    # A guest's time is in the user's time already.
    counted = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    return idle, sum(float(getattr(times, name, 0.0)) for times in every for name in counted)
