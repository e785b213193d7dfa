"""`felloe fit`"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, get_args

import typer
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console
from rich.text import Text

from felloe import __version__
from felloe.catalog.sources.credentials import SECRET_VARIABLES
from felloe.catalog.sources.reference import is_reference
from felloe.cli.client import OperatorClient
from felloe.cli.hardware import current_hardware
from felloe.cli.output import JsonOption, print_json, size, table
from felloe.console.hardware_messages import HardwareView
from felloe.console.messages import NameRequest
from felloe.domain.errors import FelloeError
from felloe.domain.fleet import RAM, Device, DeviceKind
from felloe.domain.plan import KvType, Part
from felloe.node.config import home_folder, load_config
from felloe.placement.fleet_file import read_fleet
from felloe.placement.settings import Settings
from felloe.placement.shape import Shape, shape_of
from felloe.placement.split import Room, largest_context, shortfall, split_over
from felloe.placement.words import amount

_CONTEXTS = (2048, 4096, 8192, 16384, 32768, 131072)
_MOST_CONTEXT = 2**20
_KINDS: tuple[DeviceKind, ...] = get_args(DeviceKind)


class FitCell(Struct, frozen=True, kw_only=True):
    """A model on some devices with this context in each slot: its parts, or how many bytes `where` are short."""

    context: int
    parts: tuple[Part, ...] = ()
    short_bytes: int = 0
    where: str = ""


class FitRow(Struct, frozen=True, kw_only=True):
    """One choice of devices. `longest` is the longest context that fits, in tokens; 0: none does."""

    machine: str
    devices: tuple[str, ...]
    longest: int
    cells: tuple[FitCell, ...]


class Fit(Struct, frozen=True, kw_only=True):
    """What a model would take up, everywhere."""

    model: str
    shape: Shape
    slots: int
    kv_type: KvType
    embedding: bool
    offload: bool
    rows: tuple[FitRow, ...]


class _Place(Struct, frozen=True):
    """A machine's devices with what is free on them, `ram` first."""

    name: str
    room: tuple[tuple[Device, int], ...]


def fit(
    model: Annotated[
        str,
        typer.Argument(
            help="A GGUF file or folder, a reference as for `felloe pull` (only the front of its files is read), "
            "or the name of a model that this node has or that is approved"
        ),
    ],
    fleet: Annotated[Path | None, typer.Option(help="Machines on paper (TOML), instead of this one.")] = None,
    slots: Annotated[int, typer.Option(min=1, max=256, help="How many requests are answered at once.")] = 4,
    kv_type: Annotated[str, typer.Option("--kv-type", help="What the cache is kept in: f16, q8_0, q4_0.")] = "f16",
    context: Annotated[int, typer.Option(min=0, help="One context in tokens a slot; default: a row of them.")] = 0,
    embedding: Annotated[bool, typer.Option("--embedding", help="Loaded to answer embeddings.")] = False,
    offload: Annotated[bool, typer.Option("--offload", help="Layers may lie in memory beside a GPU.")] = False,
    json: JsonOption = False,
) -> None:
    """Show how much memory a model takes on each device, by context length, before it is loaded or even fetched."""
    kinds: dict[str, KvType] = {kind: kind for kind in get_args(KvType)}
    if kv_type not in kinds:
        raise FelloeError("invalid_value", f"--kv-type {kv_type}: the cache is kept in {', '.join(kinds)}")
    shape = _shape(model)
    settings = Settings(context=context or _CONTEXTS[0], slots=slots, kv_type=kinds[kv_type], embedding=embedding)
    places = _places(fleet)
    rows = tuple(
        _row(shape, settings, place.name, room, _contexts(shape, context), offload=offload)
        for place in places
        for room in _choices(place)
    )
    found = Fit(
        model=model,
        shape=shape,
        slots=slots,
        kv_type=settings.kv_type,
        embedding=embedding,
        offload=offload,
        rows=rows,
    )
    if json:
        print_json(found)
    else:
        _show(found)


def _shape(model: str) -> Shape:
    """From a file or a source by itself; a model's name only a running node can look up."""
    if not is_reference(model) and not Path(model).exists():
        return _shape_by_name(model)
    secrets = {variable: os.environ[variable] for variable in SECRET_VARIABLES if os.environ.get(variable)}
    sources = load_config(home_folder()).sources
    # Imported here: it knows every source, and no other command should wait for that.
    from felloe.catalog.sources.front import layout_of

    layout = asyncio.run(layout_of(model, sources, agent=f"felloe/{__version__}", environment=secrets))
    return shape_of(layout)


def _shape_by_name(model: str) -> Shape:
    try:
        return OperatorClient().tell("/models/shape", NameRequest(model), Shape)
    except FelloeError as error:
        if error.code != "not_running":
            raise
        why = f"{model} is no file here, and no node is running that may know a model of that name"
        raise FelloeError("not_running", why) from error


def _places(fleet: Path | None) -> list[_Place]:
    if fleet is None:
        return [_here(current_hardware())]
    machines = read_fleet(fleet).machines
    return [_Place(each.name, tuple((device, device.memory) for device in each.devices)) for each in machines]


def _here(view: HardwareView) -> _Place:
    """This machine with what its engines leave free; what no engine can use is left out."""
    kinds: dict[str, DeviceKind] = {kind: kind for kind in _KINDS}
    room = [
        (
            Device(id=row.id, kind=kinds[row.kind], memory=row.models, name=row.name, shared=row.shared),
            max(0, row.models - row.held),
        )
        for row in view.devices
        if row.kind in kinds
    ]
    return _Place(view.name or "here", tuple(room))


def _choices(place: _Place) -> list[Room]:
    """Each GPU by itself, all of them together, memory alone; of GPUs that are the same only the first by itself."""
    ram = [entry for entry in place.room if entry[0].id == RAM]
    gpus = [entry for entry in place.room if entry[0].id != RAM and entry[1] > 0]
    choices: list[Room] = []
    shown: set[tuple[str, str, int]] = set()
    for device, free in gpus:
        if (device.kind, device.name, free) not in shown:
            shown.add((device.kind, device.name, free))
            choices.append([*ram, (device, free)])
    if len(gpus) > 1:
        choices.append([*ram, *gpus])
    return [*choices, ram]


def _contexts(shape: Shape, wanted: int) -> tuple[int, ...]:
    most = shape.context or _CONTEXTS[-1]
    return (wanted,) if wanted else (*(each for each in _CONTEXTS if each < most), min(most, _MOST_CONTEXT))


def _row(
    shape: Shape,
    settings: Settings,
    machine: str,
    room: Room,
    contexts: Sequence[int],
    *,
    offload: bool,
) -> FitRow:
    with_gpus = len(room) > 1
    cells = [
        _cell(shape, replace(settings, context=context), room, offload=offload and with_gpus) for context in contexts
    ]
    most = min(shape.context or _CONTEXTS[-1], _MOST_CONTEXT)
    longest = largest_context(shape, settings, room, most=most, offload=offload and with_gpus)
    devices = tuple(device.id for device, _ in room if device.id != RAM or not with_gpus)
    return FitRow(machine=machine, devices=devices, longest=longest, cells=tuple(cells))


def _cell(shape: Shape, settings: Settings, room: Room, *, offload: bool) -> FitCell:
    parts = split_over(shape, settings, room, offload=offload)
    if parts is not None:
        return FitCell(context=settings.context, parts=parts)
    short = shortfall(shape, settings, room, offload=offload)
    return FitCell(context=settings.context, short_bytes=short.more, where=short.where)


def _show(found: Fit) -> None:
    shape, console = found.shape, Console(highlight=False)
    made_for = f", made for {shape.context:,} tokens" if shape.context else ""
    console.print(
        Text(
            f"{found.model}: {shape.architecture} {shape.quantisation}, {_count(shape.parameters)} parameters, "
            f"{size(shape.weights)} of weights in {len(shape.layers)} layers{made_for}"
        ),
        soft_wrap=True,
    )
    slots = f"{found.slots} slots, each with the context that heads the column" if found.slots > 1 else "1 slot"
    minus = "; with a minus: it does not fit, so much is short" if _is_short(found) else ""
    console.print(Text(f"{slots}; cache in {found.kv_type}{minus}"), soft_wrap=True)
    contexts = [_short(cell.context) for cell in found.rows[0].cells] if found.rows else []
    rows = [
        [row.machine, _named(row), *map(_shown, row.cells), f"{row.longest:,}" if row.longest else "-"]
        for row in found.rows
    ]
    console.print(table(["MACHINE", "ON", *contexts, "LONGEST"], rows))
    _show_parts(found, console)


def _is_short(found: Fit) -> bool:
    return any(not cell.parts for row in found.rows for cell in row.cells)


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} B" if parameters >= 10**9 else f"{parameters / 1e6:.1f} M"


def _short(context: int) -> str:
    return f"{context // 1024}k" if context % 1024 == 0 else f"{context:,}"


def _named(row: FitRow) -> str:
    return f"{len(row.devices)} GPUs" if len(row.devices) > 1 else "".join(row.devices)


def _shown(cell: FitCell) -> str:
    """What it takes there; where it does not fit, how much is short."""
    if not cell.parts:
        return f"-{amount(cell.short_bytes)}"
    return amount(sum(part.need.total for part in cell.parts if part.layers))


def _show_parts(found: Fit, console: Console) -> None:
    """The longest listed context that fits each choice, device by device."""
    rows: list[list[str]] = []
    for row in found.rows:
        fitting = [cell for cell in row.cells if cell.parts]
        parts = fitting[-1].parts if fitting else ()
        last = max((at for at, part in enumerate(parts) if part.layers), default=0)
        for at, part in enumerate(parts):
            need = part.need
            bytes_for = [amount(count) for count in (need.weights, need.kv, need.compute, need.overhead, need.total)]
            head = [row.machine, _short(fitting[-1].context)] if at == 0 else ["", ""]
            rows.append([*head, part.device, _layers(part, with_output=at == last), *bytes_for])
    if rows:
        console.print(Text())
        columns = ["MACHINE", "WITH", "ON", "LAYERS", "WEIGHTS", "CACHE", "COMPUTE", "ELSE", "TOGETHER"]
        console.print(table(columns, rows))


def _layers(part: Part, *, with_output: bool) -> str:
    """The output counts as a layer, and lies behind the last one."""
    return f"{part.layers - 1} + output" if with_output else str(part.layers)
