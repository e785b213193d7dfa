"""`felloe pull`"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, say, size
from felloe.console.messages import Progress as Step
from felloe.console.messages import PullRequest


def pull(
    file: Annotated[Path, typer.Argument(help="A GGUF file on this machine.")],
    name: Annotated[str, typer.Option(help="What requests call the model; default: its own name.")] = "",
    json: JsonOption = False,
) -> None:
    """Take a model file into this node's store: checked, hashed, copied."""
    steps = OperatorClient().follow("/models/pull", PullRequest(str(file.expanduser().absolute()), name), Step)
    if json:
        import msgspec

        for step in steps:
            say(msgspec.json.encode(step).decode())
        return
    columns = (TextColumn(file.name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    last = Step()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("pull", total=None)
        for last in steps:
            progress.update(task, completed=last.done, total=last.total or None)
    if last.model is not None:
        say(f"{last.model.name}  {size(last.model.size)}  {last.model.digest}")
