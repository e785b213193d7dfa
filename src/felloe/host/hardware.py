"""What this machine offers to this process: processor, memory, accelerators.

On Linux the answer is what the process may really use: its CPU affinity and the limits of its control groups.
"""

import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import psutil

from felloe.domain.hardware import Gpu, Hardware
from felloe.host.cgroups import Limits, read_limits

_MAX_FILE = 2**20


def detect() -> Hardware:
    """Look at the machine now. Takes milliseconds, up to a second or two while an NVIDIA driver wakes up.

    Never raises for hardware that is absent or does not answer; it is left out.
    """
    limits = read_limits(_read_text(PurePosixPath("/proc/self/cgroup")) or "", _read_text)
    memory = psutil.virtual_memory()
    total, available = limited_memory(memory.total, memory.available, limits)
    return Hardware(
        system=platform.system(),
        machine=platform.machine(),
        processor=_processor(),
        cores=usable_cores(_affinity(), limits),
        memory_total=total,
        memory_available=available,
        gpus=(*_nvidia_gpus(total, available), *_apple_gpus(total, available)),
    )


def usable_cores(affinity: int, limits: Limits) -> int:
    """Whole cores: a thread beyond a quota would only make the others wait."""
    quota = affinity if limits.cores is None else int(limits.cores)
    return max(1, min(affinity, quota))


def limited_memory(total: int, available: int, limits: Limits) -> tuple[int, int]:
    """The machine's memory in bytes, cut to what the control group leaves."""
    if limits.memory_limit is not None:
        total = min(total, limits.memory_limit)
    if limits.memory_left is not None:
        available = min(available, limits.memory_left)
    return total, min(total, available)


def parse_processor(cpuinfo: str) -> str:
    """The processor's name from /proc/cpuinfo, empty when it names none (as most ARM kernels do)."""
    wanted = ("model name", "Model", "Hardware", "cpu model", "uarch")
    found: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), " ".join(value.split()))
    return next((found[key] for key in wanted if found.get(key)), "")


def _processor() -> str:
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    cpuinfo = _read_text(PurePosixPath("/proc/cpuinfo")) or ""
    return parse_processor(cpuinfo) or platform.processor() or platform.machine()


def _affinity() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read_text(path: PurePosixPath) -> str | None:
    try:
        with Path(path).open(errors="replace") as stream:
            return stream.read(_MAX_FILE)
    except OSError:
        return None


def _sysctl(name: str) -> str:
    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=2, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _apple_gpus(total: int, available: int) -> tuple[Gpu, ...]:
    """Apple silicon's one GPU uses the machine's own memory; it is not memory on top."""
    if sys.platform != "darwin" or platform.machine() != "arm64":
        return ()
    name = _sysctl("machdep.cpu.brand_string") or "Apple GPU"
    return (Gpu(index=0, vendor="apple", name=name, memory_total=total, memory_free=available),)


def _nvidia_gpus(total: int, available: int) -> tuple[Gpu, ...]:
    if sys.platform == "darwin":
        return ()
    # Imported here: a node without NVIDIA hardware should not pay for it at start.
    import pynvml

    return read_nvml(pynvml, total, available)


def read_nvml(nvml: ModuleType | Any, total: int, available: int) -> tuple[Gpu, ...]:
    """All GPUs that NVML answers for. `total` and `available` stand in for GPUs that share the machine's memory."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        gpus = [_read_gpu(nvml, index, total, available) for index in range(int(nvml.nvmlDeviceGetCount()))]
    except nvml.NVMLError:
        return ()
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    return tuple(gpu for gpu in gpus if gpu is not None)


def _read_gpu(nvml: Any, index: int, total: int, available: int) -> Gpu | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = nvml.nvmlDeviceGetName(handle)
    except nvml.NVMLError:
        return None
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, available = int(memory.total), int(memory.free)
    except nvml.NVMLError:
        pass  # Such as a GPU on a system on chip, which has no memory of its own.
    shown = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return Gpu(index=index, vendor="nvidia", name=shown, memory_total=total, memory_free=available)
