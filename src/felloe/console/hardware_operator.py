"""The part of the operator API that is about the machine."""

from typing import Protocol

from felloe.console.hardware_messages import HardwareView
from felloe.console.operator_table import Table


class HardwareOperations(Protocol):
    """What an owner can see of the machine."""

    async def view(self) -> HardwareView: ...


def hardware_table(hardware: HardwareOperations) -> Table:
    """The paths."""
    return Table(asked={"/hardware": hardware.view}, told={}, followed={})
