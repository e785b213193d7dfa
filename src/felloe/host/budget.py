"""How much memory of a machine models may take up: pure rules.

A device's budget is what it has, less what others hold there and what is kept free, or what the owner allows. What this
node's own engines hold is part of the budget, so that loading a model does not change it.
"""

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from felloe.domain.fleet import RAM, Device, DeviceKind, Machine
from felloe.domain.hardware import UNKNOWN, Gpu, Hardware
from felloe.domain.ids import NodeId

EVERY_GPU = "*"

LEAST_CHANGE = 0.05
GROWTH_SECONDS = 30.0
"""Smaller changes are not told, and growth only once it has lasted: plans should not dance with a browser's memory."""

_MIB, _GIB = 1 << 20, 1 << 30
_STEP = 64 * _MIB
_ROUNDED_FROM = 2 * _GIB

_NATIVE: dict[str, DeviceKind] = {"nvidia": "cuda", "amd": "rocm", "apple": "metal"}


class MemoryLimits(Struct, frozen=True, kw_only=True):
    """What the owner allows, in bytes. `gpu` is by id (`gpu0`), UUID or `*` (every other one); None: no limit."""

    gpu: Mapping[str, int] = {}
    ram: int | None = None

    def of(self, gpu: Gpu) -> int | None:
        """The limit for one GPU."""
        named = next((self.gpu[key] for key in (gpu.id, gpu.uuid) if key and key in self.gpu), None)
        return self.gpu.get(EVERY_GPU) if named is None else named

    def unmatched(self, hardware: Hardware) -> tuple[str, ...]:
        """The names that no GPU of the machine has."""
        known = {EVERY_GPU, *(gpu.id for gpu in hardware.gpus), *(gpu.uuid for gpu in hardware.gpus)}
        return tuple(sorted(set(self.gpu) - known))


def machine(
    node: NodeId,
    name: str,
    hardware: Hardware,
    limits: MemoryLimits,
    held: Mapping[str, int],
    backends: frozenset[DeviceKind] = frozenset(("cpu",)),
) -> Machine:
    """A machine as plans see it. `held` is what this node's engines have reserved, in bytes by device.

    `backends` are what the engines can compute on; a GPU that none of them uses is left out.
    """
    others = held_by_others(hardware, held)
    memory = _ram(hardware, limits, others[RAM])
    ram = Device(id=RAM, kind="cpu", memory=memory, name=hardware.processor)
    gpus = (_device(gpu, limits, others.get(gpu.id, 0), ram, backends) for gpu in hardware.gpus)
    return Machine(id=node, name=name, devices=(ram, *(gpu for gpu in gpus if gpu is not None)))


def kind_of(gpu: Gpu, backends: frozenset[DeviceKind]) -> DeviceKind | None:
    """What computes on it: its vendor's own way before Vulkan; None when the engines know neither."""
    native = _NATIVE.get(gpu.vendor)
    if native in backends:
        return native
    return "vulkan" if "vulkan" in backends and gpu.vulkan_index >= 0 else None


def driver_name(gpu: Gpu, kind: DeviceKind) -> str:
    """What the driver of this kind calls it in the variable that chooses among GPUs: a UUID, which stays right when
    another GPU is lost, or a number.
    """
    return str(gpu.vulkan_index) if kind == "vulkan" else gpu.uuid or str(gpu.index)


def held_by_others(hardware: Hardware, held: Mapping[str, int]) -> dict[str, int]:
    """What anything but this node's engines holds, in bytes by device; where no driver tells, all beyond `held`.

    A GPU that shares the machine's memory has no entry: who holds it holds `ram`.
    """
    shared = sum(held.get(gpu.id, 0) for gpu in hardware.gpus if gpu.shared)
    own = held.get(RAM, 0) if hardware.memory_own == UNKNOWN else hardware.memory_own
    found = {RAM: max(0, hardware.memory_total - hardware.memory_available - own - shared)}
    for gpu in hardware.gpus:
        if not gpu.shared:
            own = held.get(gpu.id, 0) if gpu.memory_own == UNKNOWN else gpu.memory_own
            found[gpu.id] = max(0, gpu.memory_total - gpu.memory_free - own)
    return found


def free_bytes(machine: Machine, held: Mapping[str, int]) -> dict[str, int]:
    """What is left of each device's budget, in bytes; what shared devices hold is gone from `ram`, and vice versa."""
    used = held.get(RAM, 0) + sum(held.get(device.id, 0) for device in machine.devices if device.shared)
    ram = max(0, machine.devices[0].memory - used)
    left = {RAM: ram}
    for device in machine.devices[1:]:
        free = max(0, device.memory - held.get(device.id, 0))
        left[device.id] = min(free, ram) if device.shared else free
    return left


class Told(Struct, frozen=True, kw_only=True):
    """What the network was told of a machine, and since when (seconds of a steady clock) which devices have more."""

    machine: Machine
    growing: Mapping[str, float] = {}


def settle(told: Told | None, now: Machine, at: float) -> Told:
    """What to tell after a new look: less memory at once, more after a while, and small changes not at all."""
    if told is None or _without_memory(told.machine) != _without_memory(now):
        return Told(machine=now)
    devices, growing = list[Device](), dict[str, float]()
    for before, after in zip(told.machine.devices, now.devices, strict=True):
        if abs(after.memory - before.memory) < LEAST_CHANGE * max(after.memory, before.memory):
            devices.append(before)
        elif after.memory < before.memory:
            devices.append(after)
        else:
            since = told.growing.get(after.id, at)
            has_lasted = at - since >= GROWTH_SECONDS
            devices.append(after if has_lasted else before)
            growing |= {} if has_lasted else {after.id: since}
    return Told(machine=replace(now, devices=tuple(devices)), growing=growing)


def _without_memory(machine: Machine) -> Machine:
    return replace(machine, devices=tuple(replace(device, memory=0) for device in machine.devices))


def _ram(hardware: Hardware, limits: MemoryLimits, others: int) -> int:
    """At least 1 GiB and 5 % of it stay free for the system, of a small machine a quarter."""
    total = hardware.memory_total
    if limits.ram is not None:
        return max(0, min(limits.ram, total - others))
    return _rounded(total - others - min(max(_GIB, total // 20), total // 4))


def _device(gpu: Gpu, limits: MemoryLimits, others: int, ram: Device, backends: frozenset[DeviceKind]) -> Device | None:
    kind = kind_of(gpu, backends)
    if kind is None:
        return None
    memory = _gpu_memory(gpu, limits.of(gpu), others, ram.memory)
    return Device(id=gpu.id, kind=kind, memory=memory, name=gpu.name, bandwidth=gpu.bandwidth, shared=gpu.shared)


def _gpu_memory(gpu: Gpu, limit: int | None, others: int, ram: int) -> int:
    """At least 128 MiB and 2 % of it stay free. What a shared GPU may hold is a guess, so a limit may also raise it."""
    if gpu.shared:
        return min(gpu.memory_total if limit is None else limit, ram)
    if limit is not None:
        return max(0, min(limit, gpu.memory_total - others))
    return _rounded(gpu.memory_total - others - max(128 * _MIB, gpu.memory_total // 50))


def _rounded(memory: int) -> int:
    """Down to whole steps, so that equal devices are equal to a plan; little memory is left exact."""
    return max(0, memory if memory < _ROUNDED_FROM else memory - memory % _STEP)
