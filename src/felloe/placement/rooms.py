"""What is left of each device when some placements are taken off."""

from collections.abc import Iterable

from felloe.domain.fleet import RAM, Device, Fleet, Machine
from felloe.domain.ids import NodeId
from felloe.domain.plan import Placement


class Rooms:
    """Free bytes of every device of a fleet; a device that shares the machine's memory is counted in both."""

    def __init__(self, fleet: Fleet, placements: Iterable[Placement] = ()) -> None:
        self._shared = {(m.id, d.id) for m in fleet.machines for d in m.devices if d.shared}
        self._free = {(m.id, d.id): d.memory for m in fleet.machines for d in m.devices}
        for placement in placements:
            self.take(placement)

    def take(self, placement: Placement) -> None:
        """It is there."""
        for device, size in self._uses(placement).items():
            self._free[placement.node, device] -= size

    def give_back(self, placement: Placement) -> None:
        """It is gone."""
        for device, size in self._uses(placement).items():
            self._free[placement.node, device] += size

    def holds(self, placement: Placement) -> bool:
        """Whether it would fit as well."""
        return all(size <= self._free[placement.node, device] for device, size in self._uses(placement).items())

    def free(self, node: NodeId, device: str) -> int:
        """Bytes that are left there, never less than none."""
        return max(0, self._free[node, device])

    def of(self, machine: Machine) -> list[tuple[Device, int]]:
        """The machine's devices with what each has left."""
        return [(device, self.free(machine.id, device.id)) for device in machine.devices]

    def _uses(self, placement: Placement) -> dict[str, int]:
        uses: dict[str, int] = {}
        for part in placement.parts:
            uses[part.device] = uses.get(part.device, 0) + part.need.total
            if (placement.node, part.device) in self._shared:
                uses[RAM] = uses.get(RAM, 0) + part.need.total
        return uses
