"""`felloe retire`"""

from typing import Annotated

import typer

from felloe.cli.client import OperatorClient
from felloe.cli.output import say
from felloe.console.messages import NameRequest, Nothing


def retire(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="As `felloe serve --list` names them.")],
) -> None:
    """Have the network serve models no more; what runs is drained first. Run it on a hub."""
    for model in models:
        OperatorClient().tell("/serving/retire", NameRequest(model), Nothing)
        say(f"no longer wanted: {model}")
