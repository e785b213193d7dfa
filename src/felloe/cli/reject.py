"""`felloe reject`"""

from typing import Annotated

import typer

from felloe.cli.decisions import decide
from felloe.cli.output import JsonOption
from felloe.console.catalog_messages import DecideRequest


def reject(
    name: Annotated[str, typer.Argument(help="The model's name, or the beginning of its content id.")],
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "",
    json: JsonOption = False,
) -> None:
    """Vote against a model that waits for approval."""
    decide(DecideRequest("reject", name, reason), json=json)
