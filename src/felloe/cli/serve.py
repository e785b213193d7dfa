"""`felloe serve`"""

from typing import Annotated

import typer
from msgspec.structs import replace

from felloe.cli.client import OperatorClient
from felloe.cli.invite import seconds_of
from felloe.cli.output import JsonOption, print_json, print_table, say, warn
from felloe.console.serving_messages import Declared, ServingPlace, ServingRow, ServingView
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName
from felloe.domain.plan import DesiredModel, KvType
from felloe.domain.serving import check_desired

_KV_TYPES: dict[str, KvType] = {"f16": "f16", "q8_0": "q8_0", "q4_0": "q4_0"}
_IDLE = "10m"


def serve(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL...", help="Approved models, by name.")] = None,
    replicas: Annotated[str, typer.Option(help="How many copies: 2, or 1..3 to follow the work.")] = "1",
    on_demand: Annotated[bool, typer.Option("--on-demand", help="Load it only when somebody asks.")] = False,
    idle: Annotated[str, typer.Option(help=f"Unload what nobody uses for so long; default {_IDLE}, 0: never.")] = _IDLE,
    priority: Annotated[int, typer.Option(help="A higher one is served before all lower ones.")] = 0,
    demand: Annotated[float, typer.Option(help="Weighs models of the same priority against each other.")] = 1.0,
    context: Annotated[
        str,
        typer.Option(
            help="Tokens of one request: 8192, or 4096..16384 to shrink when short; 0: the model's own, at most 8192."
        ),
    ] = "0",
    slots: Annotated[int, typer.Option(help="Requests answered at once by one copy.")] = 4,
    kv: Annotated[str, typer.Option(help="Type of the KV cache: f16, q8_0 or q4_0.")] = "f16",
    variant: Annotated[
        list[str] | None, typer.Option(help="Models that may stand for it, the best first; several times.")
    ] = None,
    pin: Annotated[list[str] | None, typer.Option(help="Only on this NODE or NODE/gpu0; several times.")] = None,
    offload: Annotated[bool, typer.Option("--offload", help="Layers may lie in RAM beside the GPUs.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="List what is served and how.")] = False,
    json: JsonOption = False,
) -> None:
    """Have the network serve models: it places, loads, moves and unloads them by itself. Run it on a hub."""
    client = OperatorClient()
    if listed or not models:
        view = client.ask("/serving", ServingView)
        print_json(view) if json else _show(view)
        return
    if variant and len(models) > 1:
        raise FelloeError("invalid_value", "variants belong to one model; name it alone")
    if kv not in _KV_TYPES:
        raise FelloeError("invalid_value", f"{kv!r} is none of {', '.join(_KV_TYPES)}")
    (least, most), (context_least, context_most) = span(replicas), span(context)
    if least > most or context_least > context_most:
        raise FelloeError("invalid_value", "a range such as 1..3 goes from the smaller to the larger")
    desired = DesiredModel(
        model=ModelName(models[0]),
        variants=tuple(map(ModelName, variant or ())),
        replicas_min=0 if on_demand else least,
        replicas_max=most,
        priority=priority,
        demand=demand,
        context=context_most,
        context_least=context_least if context_least < context_most else 0,
        slots=slots,
        kv_type=_KV_TYPES[kv],
        pins=tuple(pin or ()),
        offload=offload,
        idle_seconds=seconds_of(idle),
    )
    check_desired(desired)
    declared = [client.tell("/serving/declare", replace(desired, model=ModelName(model)), Declared) for model in models]
    if json:
        print_json(declared)
        return
    for one in declared:
        say(f"{one.desired.model}: wanted, {_copies(one.desired)}; `felloe serve --list` shows how it goes")
        for note in one.notes:
            warn(note)


def span(text: str) -> tuple[int, int]:
    """`3` or `1..3` as the least and the most."""
    first, dots, last = text.partition("..")
    try:
        return int(first), int(last if dots else first)
    except ValueError as error:
        raise FelloeError("invalid_value", f"{text!r} is no number and no range such as 1..3") from error


def _show(view: ServingView) -> None:
    if not view.rows:
        say("nothing is wanted; `felloe serve MODEL` changes that")
        return
    print_table(["MODEL", "STATE", "READY", "WANTED", "PRIORITY", "WHERE", "CONTEXT"], [_row(row) for row in view.rows])
    for row in view.rows:
        if row.note:
            say(f"\n{row.desired.model}: {row.note}")
    if view.number:
        say(f"\nplan {view.number}; `felloe plan --explain` says why")


def _row(row: ServingRow) -> list[str]:
    contexts = sorted({one.context for one in row.places})
    return [
        row.desired.model,
        row.state,
        str(row.ready),
        _replicas(row.desired),
        str(row.desired.priority),
        ", ".join(map(_where, row.places)) or "-",
        ", ".join(map(str, contexts)) or "-",
    ]


def _where(place: ServingPlace) -> str:
    if place.by_owner:
        return f"{place.node} (loaded by its owner)"
    return f"{place.node} ({', '.join(place.devices)}{'' if place.ready else '; loading'})"


def _copies(desired: DesiredModel) -> str:
    count = _replicas(desired)
    if not desired.replicas_min:
        return count
    return f"{count} {'copy' if desired.replicas_max == 1 else 'copies'}"


def _replicas(desired: DesiredModel) -> str:
    least, most = desired.replicas_min, desired.replicas_max
    if not least:
        return "on demand" if most == 1 else f"on demand, up to {most}"
    return str(most) if least == most else f"{least} to {most}"
