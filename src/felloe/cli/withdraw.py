"""`felloe withdraw`"""

from typing import Annotated

import typer

from felloe.cli.decisions import decide
from felloe.cli.output import JsonOption
from felloe.console.catalog_messages import DecideRequest


def withdraw(
    name: Annotated[str, typer.Argument(help="The model's name, or the beginning of its content id.")],
    reason: Annotated[str, typer.Option(help="Why; every node shows it to whoever asks for the model.")],
    json: JsonOption = False,
) -> None:
    """Take an approval back: every node unloads the model and loads it no more."""
    decide(DecideRequest("withdraw", name, reason), json=json)
