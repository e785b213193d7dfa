"""`felloe demote`"""

from typing import Annotated

import typer

from felloe.cli.changes import follow_change
from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption
from felloe.console.hub_messages import ChangeStep, Consequence
from felloe.console.messages import NameRequest


def demote(
    node: Annotated[str, typer.Argument(help="Name or id of the hub.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonOption = False,
) -> None:
    """Make a hub a spoke; it is not chosen again by itself. Run it on a hub."""
    client, request = OperatorClient(), NameRequest(node)
    if not yes:
        consequence = client.tell("/hubs/demotion", request, Consequence)
        if consequence.asks:
            typer.confirm(f"{consequence.sentence} Go on?", abort=True, err=True)
    follow_change(client.follow("/hubs/demote", request, ChangeStep), f"{node} is a spoke", json=json)
