"""The machines whose memory a plan may use."""

from typing import Literal

from msgspec import Struct

from felloe.domain.ids import NodeId

DeviceKind = Literal["cpu", "cuda", "rocm", "metal", "vulkan"]
"""What computes there; `cpu` is the machine's own memory and its processor."""

RAM = "ram"
"""The id of the device that is the machine's own memory; every machine has it, and has it first."""


class Device(Struct, frozen=True, kw_only=True):
    """One memory that layers can lie in.

    `id` is unique on its machine: `ram`, `gpu0`, `gpu1` and so on. `memory` in bytes is what models may take up there,
    those that are loaded now included: what the hardware has or the owner allows, less what others hold and what is
    kept free. `bandwidth` in bytes a second is how fast it reads its memory, 0 where nobody knows. `shared` says that
    it is part of the machine's own memory (Apple silicon, integrated graphics): both together hold no more than `ram`.
    """

    id: str
    kind: DeviceKind
    memory: int
    name: str = ""
    bandwidth: float = 0.0
    shared: bool = False


class Machine(Struct, frozen=True, kw_only=True):
    """A node as a plan sees it: `ram` first, then its GPUs."""

    id: NodeId
    name: str
    devices: tuple[Device, ...]

    def device(self, name: str) -> Device | None:
        """The device with this id."""
        return next((device for device in self.devices if device.id == name), None)


class Fleet(Struct, frozen=True, kw_only=True):
    """All machines that a plan may use, each id once."""

    machines: tuple[Machine, ...]

    def machine(self, node: NodeId) -> Machine | None:
        """The machine of this node."""
        return next((machine for machine in self.machines if machine.id == node), None)
