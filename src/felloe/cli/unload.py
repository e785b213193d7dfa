"""`felloe unload`"""

from typing import Annotated

import typer

from felloe.cli.client import OperatorClient
from felloe.cli.output import say
from felloe.console.messages import Nothing, UnloadRequest


def unload(
    name: Annotated[str, typer.Argument(help="A model that is loaded here.")],
    drain: Annotated[float, typer.Option(help="Seconds that running answers get to finish.")] = 30.0,
) -> None:
    """Stop serving a model on this node; answers that run are finished first."""
    OperatorClient().tell("/models/unload", UnloadRequest(name, drain), Nothing)
    say(f"unloaded: {name}")
