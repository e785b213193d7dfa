"""What this machine offers to this process: processor, memory, accelerators.

On Linux the answer is what the process may really use: its CPU affinity and the limits of its control groups.
"""

import contextlib
import logging
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import psutil

from felloe.domain.hardware import UNKNOWN, Gpu, Hardware
from felloe.domain.sizes import MOST_BYTES
from felloe.host.cgroups import Limits, read_limits
from felloe.host.gpus_amd import read_amdgpu
from felloe.host.gpus_apple import apple_gpus, sysctl
from felloe.host.gpus_nvidia import Nvml
from felloe.host.gpus_vulkan import VulkanGpu, ask_vulkaninfo, merge

logger = logging.getLogger(__name__)

_MAX_FILE = 2**20
_CHOSEN_BY = {"nvidia": "CUDA_VISIBLE_DEVICES", "amd": "ROCR_VISIBLE_DEVICES"}


class Inspector:
    """Looks at the machine again and again; keeps what is slow to ask for. Owns the open driver library.

    `environment` may hide GPUs from this program (`CUDA_VISIBLE_DEVICES`, `ROCR_VISIBLE_DEVICES`).
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment
        self._nvml: Nvml | None = None
        self._vulkan: tuple[VulkanGpu, ...] | None = None
        self._refused = set[str]()

    def look(self, children: Iterable[int] = ()) -> Hardware:
        """What there is now. `children` are the processes of this node's engines; their own children count as well.

        Blocks for milliseconds, the first time for seconds while drivers wake up. Never raises for hardware that is
        absent or does not answer; it is left out.
        """
        family = with_descendants(children)
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
            gpus=self._gpus(family, total, available),
            memory_own=own_memory(family),
        )

    def close(self) -> None:
        """Let go of the drivers."""
        if self._nvml is not None:
            self._nvml.close()

    def _gpus(self, family: frozenset[int], total: int, available: int) -> tuple[Gpu, ...]:
        if sys.platform == "darwin":
            return tuple(filter(self._believed, apple_gpus(total, available)))
        if self._nvml is None:
            # Imported here: who only wants the command line should not pay for it.
            import pynvml

            self._nvml = Nvml(pynvml)
        if self._vulkan is None:
            self._vulkan = ask_vulkaninfo()
        nvidia = self._nvml.gpus(family, total, available)
        first = 1 + max((int(gpu.id.removeprefix("gpu")) for gpu in nvidia), default=-1)
        amd = read_amdgpu(Path("/sys"), Path("/dev"), family, first)
        found = merge((*nvidia, *amd), self._vulkan, first + len(amd))
        return tuple(filter(self._believed, self._visible(found)))

    def _visible(self, gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
        for vendor, variable in _CHOSEN_BY.items():
            gpus = visible(gpus, vendor, self._environment.get(variable))
        return gpus

    def _believed(self, gpu: Gpu) -> bool:
        """Whether its figures are possible; each kind of nonsense is logged once."""
        problem = impossible(gpu)
        if problem and problem not in self._refused:
            self._refused.add(problem)
            logger.warning("%s", problem)
        return not problem


def detect() -> Hardware:
    """One look at the machine, as `Inspector.look`."""
    inspector = Inspector()
    try:
        return inspector.look()
    finally:
        inspector.close()


def impossible(gpu: Gpu) -> str:
    """Why a driver's figures for a GPU cannot be; empty when they can."""
    if not 0 < gpu.memory_total <= MOST_BYTES:
        return f"{gpu.id} ({gpu.name}) is left out: its driver tells of {gpu.memory_total} bytes of memory"
    if not 0 <= gpu.memory_free <= gpu.memory_total:
        return f"{gpu.id} ({gpu.name}) is left out: its driver tells of more memory that is free or taken than it has"
    if gpu.memory_own > gpu.memory_total:
        return f"{gpu.id} ({gpu.name}) is left out: its driver tells of processes that hold more than its memory"
    return ""


def visible(gpus: tuple[Gpu, ...], vendor: str, variable: str | None) -> tuple[Gpu, ...]:
    """Without those of `vendor` that an environment variable hides; None hides none.

    It lists numbers, as the vendor counts, or beginnings of UUIDs. What names no GPU ends the list, as it does for the
    drivers.
    """
    if variable is None:
        return gpus
    own, kept = [gpu for gpu in gpus if gpu.vendor == vendor], list[Gpu]()
    for word in filter(None, (part.strip() for part in variable.split(","))):
        found = [gpu for gpu in own if (str(gpu.index) == word if word.isdigit() else gpu.uuid.startswith(word))]
        if len(found) != 1 or found[0] in kept:
            break
        kept += found
    return tuple(gpu for gpu in gpus if gpu.vendor != vendor or gpu in kept)


def with_descendants(children: Iterable[int]) -> frozenset[int]:
    """These processes and all that they started."""
    family = set(children)
    for child in tuple(family):
        with contextlib.suppress(psutil.Error):
            family |= {one.pid for one in psutil.Process(child).children(recursive=True)}
    return frozenset(family)


def own_memory(family: frozenset[int]) -> int:
    """Bytes that these processes hold for themselves, without the pages of files; `UNKNOWN` where nothing tells."""
    if sys.platform != "linux":
        return UNKNOWN
    return sum(parse_anonymous(_read_text(PurePosixPath(f"/proc/{process}/status")) or "") for process in family)


def parse_anonymous(status: str) -> int:
    """Bytes of anonymous and shared memory of a process, from its /proc/PID/status."""
    found = re.findall(r"^Rss(?:Anon|Shmem):\s*([0-9]{1,15}) kB$", status, re.MULTILINE)
    return 1024 * sum(map(int, found))


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
        return sysctl("machdep.cpu.brand_string") or platform.machine()
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
