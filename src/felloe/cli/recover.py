"""`felloe recover`"""

from typing import Annotated

import typer

from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, print_json, say
from felloe.console.hub_messages import Consequence, HubsView
from felloe.console.messages import Nothing


def recover(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonOption = False,
) -> None:
    """Go on without hubs that are lost for good, when too few are left. Run it on the one that is to stay a hub."""
    client = OperatorClient()
    consequence = client.ask("/hubs/recovery", Consequence)
    if not yes:
        typer.confirm(f"{consequence.sentence} Go on?", abort=True, err=True)
    view = client.tell("/hubs/recover", Nothing(), HubsView)
    print_json(view) if json else say(f"{consequence.name} is the only hub now; the network {view.survives}")
