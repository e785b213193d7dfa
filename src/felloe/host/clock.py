"""A clock for promises to others: it never jumps, and it goes on while the machine sleeps."""

import sys
import time

if sys.platform == "linux":

    def steady_seconds() -> float:
        """Seconds since some point in the past, the time in which the machine slept included (CLOCK_BOOTTIME).

        A virtual machine that is paused and resumed by its host does not notice the pause here.
        """
        return time.clock_gettime(time.CLOCK_BOOTTIME)

elif sys.platform == "win32":
    import ctypes

    def steady_seconds() -> float:
        """Seconds since the machine started, its sleep included (GetTickCount64), in steps of about 16 ms."""
        count = ctypes.windll.kernel32.GetTickCount64
        count.restype = ctypes.c_ulonglong
        return count() / 1000

else:

    def steady_seconds() -> float:
        """Seconds since some point in the past; on macOS the time in which the machine slept is included.

        `time.monotonic` stands still there during sleep; CLOCK_MONOTONIC, called by its name, does not.
        """
        return time.clock_gettime(time.CLOCK_MONOTONIC)
