"""NVIDIA's GPUs, by the library that comes with their driver (NVML).

Source: NVML API Reference; nvidia-ml-py has the same names.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from msgspec.structs import replace

from felloe.domain.hardware import UNKNOWN, Gpu

logger = logging.getLogger(__name__)


class Nvml:
    """Keeps the library open: where nothing else holds the driver, opening it takes up to two seconds.

    `nvml` is the module `pynvml`. Never raises for hardware that is absent or does not answer.
    """

    def __init__(self, nvml: ModuleType | Any) -> None:
        self._nvml = nvml
        self._is_open = False

    def gpus(self, children: frozenset[int], total: int, available: int) -> tuple[Gpu, ...]:
        """All GPUs that answer, by NVML's numbers; where a GPU is cut into slices (MIG), the slices.

        `children` are the processes whose memory is this node's own. `total` and `available` stand in for GPUs that
        share the machine's memory.
        """
        try:
            if not self._is_open:
                self._nvml.nvmlInit()
                self._is_open = True
            count = int(self._nvml.nvmlDeviceGetCount())
        except self._nvml.NVMLError:
            self.close()  # a driver that was updated or reset must be opened anew
            return ()
        found = [self._gpu(index, children, total, available) for index in range(count)]
        # A slice takes the next free number; a machine without slices keeps NVML's, also while a GPU is lost.
        extra = iter(range(count, count + sum(len(gpus) for gpus in found)))
        return tuple(gpu for gpus in found for gpu in _numbered(gpus, extra))

    def close(self) -> None:
        """Let go of the driver."""
        if self._is_open:
            self._is_open = False
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _gpu(self, index: int, children: frozenset[int], total: int, available: int) -> list[Gpu]:
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            slices = self._slices(handle)
            return [self._read(one, index, children, total, available) for one in slices or [handle]]
        except self._nvml.NVMLError as error:
            logger.info("the NVIDIA GPU %d does not answer: %s", index, error)
            return []

    def _slices(self, handle: Any) -> list[Any]:
        nvml = self._nvml
        try:
            if nvml.nvmlDeviceGetMigMode(handle)[0] == 0:
                return []
            most = int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle))
        except nvml.NVMLError:
            return []  # Most GPUs cannot be cut.
        found = list[Any]()
        for place in range(most):
            with contextlib.suppress(nvml.NVMLError):
                found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place))
        return found

    def _read(self, handle: Any, index: int, children: frozenset[int], total: int, available: int) -> Gpu:
        nvml, shared = self._nvml, False
        name = _text(nvml.nvmlDeviceGetName(handle))
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            total, available = int(memory.total), int(memory.free)
        except nvml.NVMLError:
            shared = True  # Such as a GPU on a system on chip, which has no memory of its own.
        return Gpu(
            id=f"gpu{index}",
            index=index,
            vendor="nvidia",
            name=name,
            uuid=self._uuid(handle),
            memory_total=total,
            memory_free=available,
            memory_own=self._own(handle, children),
            bandwidth=self._bandwidth(handle),
            shared=shared,
        )

    def _uuid(self, handle: Any) -> str:
        try:
            return _text(self._nvml.nvmlDeviceGetUUID(handle))
        except self._nvml.NVMLError:
            return ""

    def _own(self, handle: Any, children: frozenset[int]) -> int:
        """What `children` hold, or `UNKNOWN` when none is seen: inside a container the driver shows no processes."""
        nvml, held = self._nvml, dict[int, int]()
        for list_processes in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
            with contextlib.suppress(nvml.NVMLError):
                for process in list_processes(handle):
                    # A process that computes and draws is in both lists, with the same figure.
                    held[process.pid] = max(held.get(process.pid, 0), process.usedGpuMemory or 0)
        return _sum(held[one] for one in children if held.get(one))

    def _bandwidth(self, handle: Any) -> float:
        """Memory clock (MHz, two transfers each) times the width of the bus (bits): 936 GB/s for an RTX 3090."""
        nvml = self._nvml
        try:
            clock = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)
            return 2.0 * clock * 1e6 * nvml.nvmlDeviceGetMemoryBusWidth(handle) / 8
        except nvml.NVMLError:
            return 0.0


def _numbered(gpus: list[Gpu], extra: Iterator[int]) -> Iterable[Gpu]:
    return gpus[:1] + [replace(gpu, id=f"gpu{next(extra)}") for gpu in gpus[1:]]


def _sum(held: Iterable[int]) -> int:
    found = list(held)
    return sum(found) if found else UNKNOWN


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
