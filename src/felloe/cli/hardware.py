"""`felloe hardware`"""

from rich.console import Console
from rich.text import Text

from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, moment, print_json, size, table
from felloe.console.hardware_messages import DeviceRow, HardwareView, LinkRow
from felloe.domain.errors import FelloeError
from felloe.domain.fleet import DeviceKind
from felloe.domain.ids import NodeId
from felloe.host.budget import machine
from felloe.host.hardware import detect
from felloe.node.config import home_folder, load_config
from felloe.node.hardware_operations import hardware_view
from felloe.placement.words import amount

_DEVICES = ["DEVICE", "NAME", "MEMORY", "OTHERS HOLD", "FOR MODELS", "HELD", "READS AT"]
_LINKS = ["NODE", "ROUND TRIP", "MODELS CAME AT", "MEASURED"]


def hardware(json: JsonOption = False) -> None:
    """Show this machine's memory, what models may take up of it, and how far away the other nodes are."""
    view = current_hardware()
    if json:
        print_json(view)
        return
    console = Console(highlight=False)
    head = f"{view.name + ': ' if view.name else ''}{view.processor}, {view.cores} cores, {view.system}"
    console.print(Text(f"{head} {view.architecture}"))
    console.print(table(_DEVICES, [_device(row) for row in view.devices]))
    if view.links:
        console.print(Text())
        console.print(table(_LINKS, [_link(row) for row in view.links]))
    for note in view.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)


def current_hardware() -> HardwareView:
    """This machine as its running node sees it, or as it looks without one."""
    try:
        return OperatorClient().ask("/hardware", HardwareView)
    except FelloeError as error:
        if error.code != "not_running":
            raise
        return _looked_at_here()


def _looked_at_here() -> HardwareView:
    """Without a node there are no engines, and which GPUs they could use is not known: all are shown."""
    config = load_config(home_folder())
    found, limits = detect(), config.hardware.limits()
    every_kind = frozenset[DeviceKind](("cpu", "cuda", "rocm", "metal", "vulkan"))
    note = "no node is running here, so whether its engine can use the GPUs was not asked"
    return hardware_view(
        found,
        machine(NodeId(""), config.name, found, limits, {}, every_kind),
        limits,
        {},
        notes=(note,) if found.gpus else (),
    )


def _device(row: DeviceRow) -> list[str]:
    allowed = amount(row.models, up=False) + ("" if row.limit is None else " (limit)")
    return [
        row.id,
        row.name + (" (shares ram)" if row.shared else ""),
        amount(row.total, up=False),
        "-" if row.shared else amount(row.others),
        allowed if row.kind else "not usable",
        amount(row.held),
        f"{size(int(row.bandwidth))}/s" if row.bandwidth else "-",
    ]


def _link(row: LinkRow) -> list[str]:
    return [
        row.name,
        f"{row.round_trip_seconds * 1000:.1f} ms" if row.round_trip_seconds else "-",
        f"{size(int(row.bytes_per_second))}/s" if row.bytes_per_second else "-",
        moment(row.measured_at),
    ]
