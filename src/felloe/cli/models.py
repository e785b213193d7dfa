"""`felloe models`, `felloe models verify|pin|unpin|remove|clean`"""

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from felloe.cli.catalog import standing
from felloe.cli.client import OperatorClient
from felloe.cli.output import EXIT_FAILED, JsonOption, print_json, print_table, say, size
from felloe.console.messages import NameRequest, Nothing
from felloe.console.model_messages import CleanedRow, ModelRow, VerifiedRow, VerifyStep

app = typer.Typer(help="The models of the network and of this node's store.", invoke_without_command=True)
NameArgument = Annotated[str, typer.Argument(help="The model's name.")]


@app.callback()
def models(
    context: typer.Context,
    remove: Annotated[str, typer.Option(help="Remove this model from the store of this node.")] = "",
    json: JsonOption = False,
) -> None:
    """List the models of the network and of this node's store, or do something about one."""
    if context.invoked_subcommand is not None:
        return
    if remove:
        remove_model(remove)
        return
    rows = OperatorClient().ask("/models", list[ModelRow])
    if json:
        print_json(rows)
        return
    print_table(
        ["MODEL", "SIZE", "QUANT", "CONTEXT", "CAN", "HERE", "ALSO ON", "LOADED ON", "APPROVED"],
        [
            [
                row.model.name,
                size(row.model.size) if row.model.size else "-",
                row.model.quantisation or "-",
                str(row.model.context or "-"),
                ", ".join(row.model.capabilities) or "-",
                _here(row),
                ", ".join(row.held_by) or "-",
                ", ".join(
                    node + ("" if state == "ready" else f" ({state})") for node, state in sorted(row.replicas.items())
                )
                or "-",
                _approval(row),
            ]
            for row in rows
        ],
    )


@app.command("verify")
def verify(
    name: Annotated[str, typer.Argument(help="The model's name; default: all.")] = "", json: JsonOption = False
) -> None:
    """Read every byte of the stored models again; what is damaged is repaired from other nodes, or never loaded."""
    verified = _followed(OperatorClient().follow("/models/verify", NameRequest(name), VerifyStep))
    if json:
        print_json(verified)
    else:
        for row in verified:
            _tell(row)
    if any(row.damaged and not row.repaired for row in verified):
        raise typer.Exit(EXIT_FAILED)


@app.command("pin")
def pin(name: NameArgument) -> None:
    """Have clean-up keep a model."""
    OperatorClient().tell("/models/pin", NameRequest(name), Nothing)
    say(f"pinned: {name}")


@app.command("unpin")
def unpin(name: NameArgument) -> None:
    """Let clean-up delete a model when a pull needs room."""
    OperatorClient().tell("/models/unpin", NameRequest(name), Nothing)
    say(f"unpinned: {name}")


@app.command("remove")
def remove_model(name: NameArgument) -> None:
    """Remove a model from the store of this node."""
    OperatorClient().tell("/models/remove", NameRequest(name), Nothing)
    say(f"removed: {name}")


@app.command("clean")
def clean(json: JsonOption = False) -> None:
    """Delete what interrupted pulls left and damaged content, then models until the quota is kept."""
    cleaned = OperatorClient().tell("/models/clean", Nothing(), CleanedRow)
    if json:
        print_json(cleaned)
        return
    for name in cleaned.models:
        say(f"removed: {name}")
    say(f"freed: {size(cleaned.freed)}")


def _here(row: ModelRow) -> str:
    if row.problem:
        return "damaged"
    return "pinned" if row.pinned else "yes" if row.stored else "no"


def _approval(row: ModelRow) -> str:
    if row.approval is not None:
        return standing(row.approval)
    return "not published" if row.stored else "-"


def _followed(steps: Iterator[VerifyStep]) -> tuple[VerifiedRow, ...]:
    columns = (TextColumn("verify"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    verified: tuple[VerifiedRow, ...] = ()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("verify", total=None)
        for step in steps:
            progress.update(task, completed=step.done, total=step.total or None)
            verified = verified if step.models is None else step.models
    return verified


def _tell(row: VerifiedRow) -> None:
    if not row.damaged:
        say(f"whole: {row.name}")
        return
    for file in row.damaged:
        chunks = ", ".join(str(chunk) for chunk in file.bad_chunks[:10]) + (", ..." if file.bad_chunks[10:] else "")
        say(f"damaged: {row.name}  {file.path}" + (f"  chunks {chunks}" if chunks else ""))
    if row.repaired:
        say("         repaired from other nodes")
    else:
        say(f"         pull it again{f' from {row.source}' if row.source else ''}")
    if row.loaded:
        say(f"         it is loaded here from the damaged file; `felloe unload {row.name}`")
