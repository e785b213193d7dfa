"""`felloe ps`"""

import time
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, moment, print_json, size, speed, table, time_left
from felloe.console.messages import MemberRow, PullRow, Status
from felloe.console.serving_messages import ServingRow, ServingView
from felloe.domain.hardware import Hardware
from felloe.domain.roster import LoadingReplica, LoadStage, Replica
from felloe.placement.words import amount

_STAGES: dict[LoadStage, str] = {"waiting": "waits for memory", "fetching": "comes", "starting": "starts"}
_COLUMNS = ["NODE", "ID", "ROLES", "STATE", "HARDWARE", "MODELS", "LOAD", "VERSION"]


def ps(
    json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show changes until Ctrl-C.")] = False,
) -> None:
    """Show the nodes of the network: roles, hardware, models, load, and wanted models that are not ready."""
    client = OperatorClient()
    if not watch:
        if json:
            print_json(client.ask("/members", list[MemberRow]))
        else:
            Console(highlight=False).print(_picture(client))
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
            live.update(_picture(client), refresh=True)
            time.sleep(1)


def _picture(client: OperatorClient) -> Group:
    """The table, and beneath it what its cells have no room for."""
    members, status = client.ask("/members", list[MemberRow]), client.ask("/status", Status)
    serving = client.ask("/serving", ServingView)
    ordered = sorted(members, key=lambda member: (member.record.roles, member.record.name))
    lines = [
        f"{member.record.name}: {model}: {reason}"
        for member in ordered
        for model, reason in sorted(member.problems.items())
    ]
    lines += [f"{member.record.name}: {_pull(pull)}" for member in ordered for pull in member.pulls]
    lines += [
        f"{member.record.name}: {_loading(loading)}"
        for member in ordered
        for loading in (member.record.loading if member.alive else ())
    ]
    lines += [_wanted(row) for row in serving.rows if row.state in ("cold", "refused", "waiting")]
    if status.alone_since:
        lines.append(f"no hub: serving this machine only since {moment(status.alone_since)}")
    return Group(table(_COLUMNS, [_row(member) for member in ordered]), *map(Text, lines))


def _row(member: MemberRow) -> list[str]:
    record, load = member.record, member.load
    models = ", ".join(map(_replica, record.replicas))
    active, waiting = sum(load.active.values()), sum(load.waiting.values())
    state = "up" if member.alive else f"gone {member.silent_seconds:.0f} s"
    return [
        record.name + (" *" if member.this else ""),
        record.id[:8],
        ",".join(record.roles) + (" (leads)" if member.leads else ""),
        "draining" if member.alive and load.draining else state,
        _hardware(record.hardware),
        models or "-",
        f"{active} active, {waiting} waiting",
        member.note or record.version,
    ]


def _replica(replica: Replica) -> str:
    """`tiny-python`, `tiny-python (starting)`, `tiny-python (42 tokens/s)`."""
    note = replica.state if replica.state != "ready" else f"{replica.speed:g} tokens/s" if replica.speed else ""
    return replica.model.name + (f" ({note})" if note else "")


def _loading(loading: LoadingReplica) -> str:
    """`loads large: comes 1.2 GB of 4.0 GB, 1:05 left`."""
    come = f" {size(loading.done)} of {size(loading.total)}" if loading.total else ""
    left = f", {time_left(loading.ready_in)}" if loading.ready_in else ""
    variant = f" as {loading.variant}" if loading.variant != loading.model else ""
    return f"loads {loading.model}{variant}: {_STAGES[loading.stage]}{come}{left}"


def _wanted(row: ServingRow) -> str:
    """`large: cold, the next request loads it`."""
    words = {"cold": "cold, the next request loads it", "waiting": "wanted, the leading hub plans it"}
    return f"{row.desired.model}: {words.get(row.state) or f'does not fit: {row.note}'}"


def _pull(pull: PullRow) -> str:
    """`pulls hf:owner/repo: model.gguf 1.2 GB of 4.0 GB, 12.3 MB/s, 1:05 left`."""
    come = f"{size(pull.done)} of {size(pull.total)}" if pull.total else size(pull.done)
    return ", ".join(filter(None, (f"pulls {pull.reference}: {f'{pull.file} {come}'.strip()}", speed(pull))))


def _hardware(hardware: Hardware) -> str:
    parts = [f"{hardware.cores} cores", amount(hardware.memory_total, up=False)]
    parts += [f"{gpu.name} {amount(gpu.memory_total, up=False)}" for gpu in hardware.gpus]
    return ", ".join(parts)
