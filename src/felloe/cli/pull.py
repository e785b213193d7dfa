"""`felloe pull`"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from felloe.catalog.sources.credentials import SECRET_VARIABLES
from felloe.catalog.sources.reference import FileReference, parse_reference
from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, say, size, warn
from felloe.console.messages import Progress as Step
from felloe.console.messages import PullRequest

_MOST_NAME_CHARACTERS = 40


def pull(
    reference: Annotated[
        str,
        typer.Argument(
            help="A GGUF file or folder, hf:owner/repo[@revision][:file or quantisation], ollama:name[:tag], "
            "oci:host/repo[:tag], or https://..."
        ),
    ],
    name: Annotated[str, typer.Option(help="What requests call the model; default: its own name.")] = "",
    pin: Annotated[bool, typer.Option("--pin", help="Have clean-up keep it.")] = False,
    json: JsonOption = False,
) -> None:
    """Bring a model into this node's store: resumed where an earlier pull stopped, and checked."""
    secrets = {variable: os.environ[variable] for variable in SECRET_VARIABLES if os.environ.get(variable)}
    request = PullRequest(_absolute(reference), name, pin, secrets)
    steps = OperatorClient().follow("/models/pull", request, Step)
    try:
        if json:
            for step in steps:
                say(msgspec.json.encode(step).decode())
            return
        last = _show(steps)
    except KeyboardInterrupt:
        warn("what has come is kept; the same command goes on there")
        raise
    if last.model is not None:
        say(f"{last.model.name}  {size(last.model.size)}  {last.model.digest}")


def _absolute(reference: str) -> str:
    """A path as the node, which works in another folder, understands it."""
    parsed = parse_reference(reference)
    return str(Path(parsed.path).expanduser().absolute()) if isinstance(parsed, FileReference) else reference


def _show(steps: Iterator[Step]) -> Step:
    """Draw how far it is; returns the last step."""
    columns = (TextColumn("{task.fields[file]}"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[speed]}"))
    last, console = Step(), Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("pull", total=None, file="", speed="")
        for last in steps:
            file = last.file[-_MOST_NAME_CHARACTERS:]
            progress.update(task, completed=last.done, total=last.total or None, file=file, speed=_speed(last))
    return last


def _speed(step: Step) -> str:
    """`12.3 MB/s, 1:05 left`, or why nothing comes."""
    if step.note or not step.rate:
        return step.note
    left = int(step.eta)
    hours, minutes, seconds = left // 3600, left % 3600 // 60, left % 60
    clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"{size(int(step.rate))}/s, {clock} left"
