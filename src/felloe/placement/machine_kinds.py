"""Machines that are alike for planning, taken together: what holds for one of them holds for all."""

from collections.abc import Collection, Sequence

from msgspec import Struct
from msgspec.structs import replace

from felloe.domain.fleet import Device, Fleet, Machine
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.plan import Placement
from felloe.placement.wishes import Wish


class MachineKind(Struct, frozen=True, kw_only=True):
    """Machines with the same devices on which the same may be placed, and on which the same runs now.

    `allowed` has one entry a wish: the ids of the devices that its pins leave. `current` names no node.
    """

    devices: tuple[Device, ...]
    allowed: tuple[tuple[str, ...], ...]
    barred: tuple[ModelName, ...]
    current: tuple[Placement, ...]
    machines: tuple[NodeId, ...]


def kinds_of(
    fleet: Fleet, wishes: Sequence[Wish], current: Sequence[Placement], barred: Collection[tuple[NodeId, ModelName]]
) -> tuple[MachineKind, ...]:
    """All machines by kind, in an order that depends on nothing but them."""
    running: dict[NodeId, list[Placement]] = {}
    for placement in current:
        running.setdefault(placement.node, []).append(placement)
    refused: dict[NodeId, list[ModelName]] = {}
    for node, variant in barred:
        refused.setdefault(node, []).append(variant)
    groups: dict[MachineKind, list[NodeId]] = {}
    for machine in sorted(fleet.machines, key=lambda machine: machine.id):
        kind = MachineKind(
            devices=tuple(replace(device, name="") for device in machine.devices),
            allowed=tuple(allowed_devices(machine, wish.desired.pins) for wish in wishes),
            barred=tuple(sorted(set(refused.get(machine.id, ())))),
            current=_nameless(running.get(machine.id, ())),
            machines=(),
        )
        groups.setdefault(kind, []).append(machine.id)
    return tuple(replace(kind, machines=tuple(nodes)) for kind, nodes in groups.items())


def allowed_devices(machine: Machine, pins: Sequence[str]) -> tuple[str, ...]:
    """Which devices of the machine a model with these pins may use; without pins all."""
    if not pins:
        return tuple(device.id for device in machine.devices)
    names = (machine.name, machine.id)
    return tuple(
        device.id
        for device in machine.devices
        if any(pin in names or pin in (f"{names[0]}/{device.id}", f"{names[1]}/{device.id}") for pin in pins)
    )


def _nameless(placements: Sequence[Placement]) -> tuple[Placement, ...]:
    return tuple(
        replace(placement, node=NodeId(""))
        for placement in sorted(placements, key=lambda placement: (placement.model, placement.variant))
    )
