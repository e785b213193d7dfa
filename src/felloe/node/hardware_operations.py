"""What the operator API says of the machine."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from felloe.console.hardware_messages import DeviceRow, HardwareView, LinkRow
from felloe.domain.fleet import RAM, Machine
from felloe.domain.hardware import Hardware
from felloe.host.budget import MemoryLimits, held_by_others

if TYPE_CHECKING:
    from felloe.node.node import Node


class HardwareOperations:
    """Implements the console's `HardwareOperations` for one node."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    async def view(self) -> HardwareView:
        """The machine as it is now, and the ways to the other nodes."""
        watch = self._node.placing.machine
        machine = await watch.look()
        return hardware_view(
            watch.hardware, machine, watch.limits, watch.held(), links=self._node.transfer.links.rows()
        )


def hardware_view(
    hardware: Hardware,
    machine: Machine,
    limits: MemoryLimits,
    held: Mapping[str, int],
    *,
    links: tuple[LinkRow, ...] = (),
    notes: tuple[str, ...] = (),
) -> HardwareView:
    """A look at the machine, put into rows: `ram` first, then every GPU, also those that no engine uses."""
    others = held_by_others(hardware, held)
    ram = DeviceRow(
        id=RAM,
        kind="cpu",
        name=hardware.processor,
        total=hardware.memory_total,
        others=others[RAM],
        models=machine.devices[0].memory,
        held=held.get(RAM, 0),
        limit=limits.ram,
    )
    gpus = list[DeviceRow]()
    for gpu in hardware.gpus:
        device = machine.device(gpu.id)
        gpus.append(
            DeviceRow(
                id=gpu.id,
                kind="" if device is None else device.kind,
                name=gpu.name,
                total=gpu.memory_total,
                others=others.get(gpu.id, 0),
                models=0 if device is None else device.memory,
                held=held.get(gpu.id, 0),
                limit=limits.of(gpu),
                bandwidth=gpu.bandwidth,
                shared=gpu.shared,
                uuid=gpu.uuid,
            )
        )
    return HardwareView(
        name=machine.name,
        system=hardware.system,
        architecture=hardware.machine,
        processor=hardware.processor,
        cores=hardware.cores,
        devices=(ram, *gpus),
        links=links,
        notes=(*notes, *_notes(hardware, machine, limits)),
    )


def _notes(hardware: Hardware, machine: Machine, limits: MemoryLimits) -> list[str]:
    unknown = [f"hardware.gpu_memory_limit names {name}, which is not here" for name in limits.unmatched(hardware)]
    unused = [gpu.id for gpu in hardware.gpus if machine.device(gpu.id) is None]
    if unused:
        unknown.append(f"the engine that is installed here cannot use {', '.join(unused)}: see docs/hardware.md")
    return unknown
