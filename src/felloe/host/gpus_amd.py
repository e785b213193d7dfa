"""AMD's GPUs, by what the kernel's driver tells in files.

Source: Documentation/gpu/amdgpu/driver-misc.rst of the Linux kernel (`mem_info_*`), and `kfd_topology.c` and
`kfd_process.c` of its compute driver for the order in which ROCm counts and for what each process holds. No file tells
the speed of the memory.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from felloe.domain.hardware import UNKNOWN, Gpu

_VENDOR = "0x1002"
_MOST_FILE = 64 * 1024
_MOST_GPUS = 64


class _Compute(NamedTuple):
    """A GPU as the compute driver lists it; `number` is its node there."""

    number: int
    gpu_id: int
    unique_id: int
    has_cores: bool


def read_amdgpu(system: Path, devices: Path, children: frozenset[int], first: int) -> tuple[Gpu, ...]:
    """All GPUs that this process may open; `system` is /sys, `devices` is /dev.

    Their ids count from `first` on. `children` are the processes whose memory is this node's own.
    """
    nodes = _compute_nodes(system / "class/kfd/kfd/topology/nodes")
    found = list[tuple[int, int, Path]]()
    for render in _entries(system / "class/drm"):
        minor = re.fullmatch(r"renderD([0-9]{1,6})", render.name)
        if minor is None or _text(render / "device/vendor") != _VENDOR:
            continue
        if os.access(devices / "dri" / render.name, os.R_OK | os.W_OK):
            number = int(minor[1])
            found.append((nodes[number].number if number in nodes else _MOST_FILE, number, render / "device"))
    found.sort()
    return tuple(
        _gpu(folder, index, f"gpu{first + index}", nodes.get(minor), _held(system, nodes.get(minor), children))
        for index, (_, minor, folder) in enumerate(found[:_MOST_GPUS])
    )


def _gpu(folder: Path, index: int, name: str, node: _Compute | None, own: int) -> Gpu:
    total, used = _number(folder / "mem_info_vram_total"), _number(folder / "mem_info_vram_used")
    shared = node is not None and node.has_cores
    if shared:
        # A processor with graphics: a small part of the memory is set aside, and it reaches the rest as well.
        total += _number(folder / "mem_info_gtt_total")
        used += _number(folder / "mem_info_gtt_used")
    unique = f"GPU-{node.unique_id:016x}" if node is not None and node.unique_id else ""
    return Gpu(
        id=name,
        index=index,
        vendor="amd",
        name=_text(folder / "product_name") or f"AMD GPU {_text(folder / 'device')}".strip(),
        uuid=unique,
        memory_total=total,
        memory_free=total - used,
        memory_own=own,
        shared=shared,
    )


def _compute_nodes(folder: Path) -> dict[int, _Compute]:
    """By the number of the render device; a node without one is a processor."""
    found = dict[int, _Compute]()
    for entry in _entries(folder):
        properties = dict(line.split(None, 1) for line in _text(entry / "properties").splitlines() if " " in line)
        minor, gpu_id = _parsed(properties.get("drm_render_minor")), _number(entry / "gpu_id")
        if entry.name.isdigit() and minor and gpu_id:
            has_cores = _parsed(properties.get("cpu_cores_count")) > 0
            found[minor] = _Compute(int(entry.name), gpu_id, _parsed(properties.get("unique_id")), has_cores)
    return found


def _held(system: Path, node: _Compute | None, children: frozenset[int]) -> int:
    """What `children` hold there, or `UNKNOWN` when none is seen: a program that uses Vulkan is not listed."""
    if node is None:
        return UNKNOWN
    folder = system / "class/kfd/kfd/proc"
    held = [_number(folder / str(child) / f"vram_{node.gpu_id}") for child in children]
    return sum(held) or UNKNOWN


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        with path.open(errors="replace") as stream:
            return stream.read(_MOST_FILE).strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    return _parsed(_text(path))


def _parsed(text: str | None) -> int:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,20}", text.strip()) else 0
