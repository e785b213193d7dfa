"""`felloe ps`"""

import time
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, print_json, size, table
from felloe.console.messages import MemberRow
from felloe.domain.hardware import Hardware

_COLUMNS = ["NODE", "ID", "ROLES", "STATE", "HARDWARE", "MODELS", "LOAD", "VERSION"]


def ps(
    json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show changes until Ctrl-C.")] = False,
) -> None:
    """Show the nodes of the network: roles, hardware, models, load."""
    client = OperatorClient()
    if not watch:
        members = client.ask("/members", list[MemberRow])
        print_json(members) if json else Console(highlight=False).print(_table(members))
    elif json:
        _watch_json(client)
    else:
        _watch_table(client)


def _watch_json(client: OperatorClient) -> None:
    while True:
        print_json(client.ask("/members", list[MemberRow]))
        time.sleep(1)


def _watch_table(client: OperatorClient) -> None:
    with Live(console=Console(highlight=False), screen=False, auto_refresh=False) as live:
        while True:
            live.update(_table(client.ask("/members", list[MemberRow])), refresh=True)
            time.sleep(1)


def _table(members: list[MemberRow]) -> Table:
    ordered = sorted(members, key=lambda member: (member.record.roles, member.record.name))
    return table(_COLUMNS, [_row(member) for member in ordered])


def _row(member: MemberRow) -> list[str]:
    record, load = member.record, member.load
    models = ", ".join(
        replica.model.name + ("" if replica.state == "ready" else f" ({replica.state})") for replica in record.replicas
    )
    active, waiting = sum(load.active.values()), sum(load.waiting.values())
    state = "up" if member.alive else f"gone {member.silent_seconds:.0f} s"
    return [
        record.name + (" *" if member.this else ""),
        record.id[:8],
        ",".join(record.roles),
        "draining" if member.alive and load.draining else state,
        _hardware(record.hardware),
        models or "-",
        f"{active} active, {waiting} waiting",
        record.version,
    ]


def _hardware(hardware: Hardware) -> str:
    parts = [f"{hardware.cores} cores", size(hardware.memory_total)]
    parts += [f"{gpu.name} {size(gpu.memory_total)}" for gpu in hardware.gpus]
    return ", ".join(parts)
