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
from felloe.catalog.sources.reference import FileReference, is_reference, parse_reference
from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, say, size, speed, warn
from felloe.console.messages import Progress as Step
from felloe.console.messages import PullRequest

_MOST_NAME_CHARACTERS = 40


def pull(
    reference: Annotated[
        str,
        typer.Argument(
            help="A GGUF file or folder, hf:owner/repo[@revision][:file or quantisation], ollama:name[:tag], "
            "oci:host/repo[:tag], https://..., or the name of an approved model that another node has"
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
        last = show_progress(steps)
    except KeyboardInterrupt:
        warn("what has come is kept; the same command goes on there")
        raise
    if last.model is not None:
        say(f"{last.model.name}  {size(last.model.size)}  {last.model.digest}")
        if last.approval:
            say(last.approval)


def _absolute(reference: str) -> str:
    """A path as the node, which works in another folder, understands it. A bare word is a model unless it lies here."""
    parsed = parse_reference(reference)
    if not is_reference(reference) and not Path(reference).exists():
        return reference
    return str(Path(parsed.path).expanduser().absolute()) if isinstance(parsed, FileReference) else reference


def show_progress(steps: Iterator[Step]) -> Step:
    """Draw how far it is; returns the last step."""
    columns = (TextColumn("{task.fields[file]}"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[speed]}"))
    last, console = Step(), Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("pull", total=None, file="", speed="")
        for last in steps:
            file = last.file[-_MOST_NAME_CHARACTERS:]
            progress.update(task, completed=last.done, total=last.total or None, file=file, speed=speed(last))
    return last
