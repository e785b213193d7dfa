"""`felloe plan`"""

import asyncio
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from felloe.catalog.sources.front import layout_of_file
from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, print_json, print_table, say
from felloe.console.serving_messages import PlanView
from felloe.domain.errors import FelloeError
from felloe.domain.fleet import Fleet
from felloe.domain.plan import DesiredModel, Plan
from felloe.placement.explain import explain, quality
from felloe.placement.fleet_file import read_fleet
from felloe.placement.models_file import read_models
from felloe.placement.plan import SECONDS, make_plan
from felloe.placement.shape import Shape, shape_of
from felloe.placement.words import amount, not_placed

_COLUMNS = ["MODEL", "MACHINE", "DEVICES", "CONTEXT", "REQUESTS"]


def plan(
    fleet: Annotated[Path | None, typer.Option(help="Machines on paper (TOML); with --models.")] = None,
    models: Annotated[Path | None, typer.Option(help="Models on paper (TOML); with --fleet.")] = None,
    explained: Annotated[bool, typer.Option("--explain", help="Say why, in bytes.")] = False,
    seconds: Annotated[float, typer.Option(min=0, max=3600, help="How long to search for a better plan.")] = SECONDS,
    json: JsonOption = False,
) -> None:
    """Show which models go where: in this network, or for a fleet on paper."""
    if (fleet is None) != (models is None):
        raise FelloeError("invalid_value", "a plan on paper needs both --fleet and --models")
    if not math.isfinite(seconds):
        raise FelloeError("invalid_value", f"--seconds {seconds}: it must be from 0 to 3600")
    if fleet is None or models is None:
        view = OperatorClient().ask("/plan", PlanView)
    else:
        machines = read_fleet(fleet)
        desired, facts = read_models(models, _shape)
        found = make_plan(machines, desired, facts, seconds=seconds, now=time.monotonic)
        view = PlanView(plan=found, fleet=machines, desired=desired)
    if json:
        print_json(view)
    elif explained:
        say(explain(view.plan, view.fleet, view.desired))
    else:
        _show(view.plan, view.fleet, view.desired)


def _shape(path: Path) -> Shape:
    return shape_of(asyncio.run(layout_of_file(path)))


def _show(found: Plan, fleet: Fleet, desired: Sequence[DesiredModel]) -> None:
    """A row a replica, a line or two a refusal."""
    rows: list[list[str]] = []
    for placement in found.placements:
        machine = fleet.machine(placement.node)
        devices = "\n".join(f"{part.device} {amount(part.need.total)}" for part in placement.parts)
        name = placement.model if placement.variant == placement.model else f"{placement.model} ({placement.variant})"
        where = machine.name if machine else placement.node[:8]
        rows.append([name, where, devices, f"{placement.context:,}", str(placement.slots)])
    if rows:
        print_table(_COLUMNS, rows)
    for refusal in found.refusals:
        say(f"{refusal.model}: {not_placed(refusal)}: {refusal.reason}")
        if refusal.nearest:
            say(f"  nearest: {refusal.nearest}")
    say(quality(found, desired))
