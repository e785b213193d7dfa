"""GPUs that only Vulkan knows (Intel's, and others without a driver library of their own), by `vulkaninfo`.

Its profile in JSON says nothing of memory, so its text is read: it has kept its form for years. Vulkan's numbers for
GPUs that another reader found are taken from here as well.
"""

import re
import shutil
import subprocess
from typing import NamedTuple

from msgspec.structs import replace

from felloe.domain.hardware import Gpu

_MOST_TEXT = 8 * (1 << 20)
_SECONDS = 5.0
_MOST_GPUS = 64
_VENDORS = {"nvidia": 0x10DE, "amd": 0x1002}
_GPU = re.compile(r"^GPU([0-9]{1,3}):\s*$", re.MULTILINE)
_HEAP = re.compile(r"memoryHeaps\[[0-9]{1,3}\]:(.*?)(?=memoryHeaps\[|memoryTypes:|\Z)", re.DOTALL)


class VulkanGpu(NamedTuple):
    """A device as Vulkan describes it; memory in bytes. `kind` is such as `DISCRETE_GPU`."""

    number: int
    vendor: int
    kind: str
    name: str
    total: int
    free: int


def ask_vulkaninfo() -> tuple[VulkanGpu, ...]:
    """What `vulkaninfo` tells; nothing where it is not installed or fails. Takes up to some seconds."""
    program = shutil.which("vulkaninfo")
    if program is None:
        return ()
    try:
        done = subprocess.run([program], capture_output=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_vulkaninfo(done.stdout[:_MOST_TEXT].decode(errors="replace"))


def parse_vulkaninfo(text: str) -> tuple[VulkanGpu, ...]:
    """The devices in the text of `vulkaninfo`; what has no name or no memory of its own is left out."""
    heads = list(_GPU.finditer(text))
    found = dict[int, VulkanGpu]()
    for place, head in enumerate(heads[: 4 * _MOST_GPUS]):
        end = heads[place + 1].start() if place + 1 < len(heads) else len(text)
        gpu = _gpu(int(head[1]), text[head.end() : end])
        if gpu is not None:
            found.setdefault(gpu.number, gpu)
    return tuple(found[index] for index in sorted(found)[:_MOST_GPUS])


def merge(gpus: tuple[Gpu, ...], listed: tuple[VulkanGpu, ...], first: int) -> tuple[Gpu, ...]:
    """`gpus` with Vulkan's numbers, and behind them those that only Vulkan knows, their ids from `first` on.

    A vendor's GPUs stand in the same order in both lists. What Vulkan computes on the processor is no GPU.
    """
    result, used = list[Gpu](), set[int]()
    for gpu in gpus:
        match = next((one for one in listed if one.vendor == _VENDORS.get(gpu.vendor) and one.number not in used), None)
        used |= {match.number} if match else set()
        result.append(replace(gpu, vulkan_index=match.number) if match else gpu)
    known = {_VENDORS[gpu.vendor] for gpu in gpus if gpu.vendor in _VENDORS}
    rest = [one for one in listed if one.kind in ("DISCRETE_GPU", "INTEGRATED_GPU") and one.vendor not in known]
    return (*result, *(_as_gpu(one, f"gpu{first + place}") for place, one in enumerate(rest)))


def _as_gpu(found: VulkanGpu, name: str) -> Gpu:
    return Gpu(
        id=name,
        index=found.number,
        vendor="vulkan",
        name=found.name,
        memory_total=found.total,
        memory_free=found.free,
        memory_own=0,  # Asked for once, before any engine runs.
        shared=found.kind == "INTEGRATED_GPU",
        vulkan_index=found.number,
    )


def _gpu(index: int, text: str) -> VulkanGpu | None:
    name, kind, vendor = _value(text, "deviceName"), _value(text, "deviceType"), _value(text, "vendorID")
    total, free = 0, 0
    for heap in _HEAP.findall(text[text.find("memoryHeaps[") :]) if "memoryHeaps[" in text else []:
        if "DEVICE_LOCAL" not in heap:
            continue
        size, budget = _count(heap, "size"), _count(heap, "budget")
        if size > total:
            total, free = size, min(size, budget or size)
    if not name or not total or not re.fullmatch(r"0x[0-9a-fA-F]{1,8}", vendor):
        return None
    return VulkanGpu(index, int(vendor, 16), kind.removeprefix("PHYSICAL_DEVICE_TYPE_"), name[:128], total, free)


def _value(text: str, key: str) -> str:
    found = re.search(rf"^\s*{key}\s*= (.{{1,256}}?)\s*$", text, re.MULTILINE)
    return found[1] if found else ""


def _count(text: str, key: str) -> int:
    found = re.search(rf"^\s*{key}\s*= ([0-9]{{1,20}})\b", text, re.MULTILINE)
    return int(found[1]) if found else 0
