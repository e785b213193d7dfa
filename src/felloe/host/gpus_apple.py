"""Apple silicon's one GPU, which uses the machine's own memory."""

import platform
import subprocess
import sys

from felloe.domain.hardware import Gpu

_SMALL_MACHINE = 36 * (1 << 30)


def apple_gpus(total: int, available: int) -> tuple[Gpu, ...]:
    """The GPU of a Mac, with as much of the machine's memory as it may hold at most."""
    if sys.platform != "darwin" or platform.machine() != "arm64":
        return ()
    limit = sysctl("iogpu.wired_limit_mb")
    most = working_set(total, int(limit) << 20 if limit.isdigit() and len(limit) < 9 else 0)
    name = sysctl("machdep.cpu.brand_string") or "Apple GPU"
    gpu = Gpu(
        id="gpu0",
        index=0,
        vendor="apple",
        name=name,
        memory_total=most,
        memory_free=min(most, available),
        shared=True,
    )
    return (gpu,)


def working_set(total: int, wired_limit: int) -> int:
    """What Metal lets a GPU hold of `total` bytes: the owner's `iogpu.wired_limit_mb`, else two thirds of a machine of
    up to 36 GiB and three quarters of a larger one (what `recommendedMaxWorkingSetSize` was seen to be).
    """
    if wired_limit:
        return min(total, wired_limit)
    return total * 2 // 3 if total <= _SMALL_MACHINE else total * 3 // 4


def sysctl(name: str) -> str:
    """A value of the system, empty when it has none."""
    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=2, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
