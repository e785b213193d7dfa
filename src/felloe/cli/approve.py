"""`felloe approve`"""

from typing import Annotated

import typer

from felloe.cli.decisions import decide
from felloe.cli.output import JsonOption
from felloe.console.catalog_messages import DecideRequest


def approve(
    name: Annotated[str, typer.Argument(help="The model's name, or the beginning of its content id.")],
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "",
    json: JsonOption = False,
) -> None:
    """Let the network load a model. It takes a curator's key on this node, and as many curators as were agreed."""
    decide(DecideRequest("approve", name, reason), json=json)
