"""`felloe hubs`"""

from typing import Annotated

import typer

from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, print_json, print_table, say
from felloe.console.hub_messages import HubRow, HubsRequest, HubsView
from felloe.node.config import HUB_COUNTS


def hubs(
    wanted: Annotated[str, typer.Argument(metavar="[auto|1|3|5]", help="Keep so many hubs from now on.")] = "",
    json: JsonOption = False,
) -> None:
    """Show the hubs and what the network survives, or set how many hubs it keeps.

    `auto` keeps three as soon as three nodes can be hubs. Setting it works on a hub.
    """
    client = OperatorClient()
    if wanted and wanted not in HUB_COUNTS:
        raise typer.BadParameter(f"{wanted!r} is not one of {', '.join(HUB_COUNTS)}", param_hint="wanted")
    if wanted:
        view = client.tell("/hubs/wanted", HubsRequest(HUB_COUNTS[wanted]), HubsView)
    else:
        view = client.ask("/hubs", HubsView)
    print_json(view) if json else _show(view)


def _show(view: HubsView) -> None:
    print_table(["HUB", "ID", "ADDRESS", "STATE", "KEEPS THE STATE", "LEADS"], [_row(hub) for hub in view.hubs])
    wanted = f"{view.wanted}" if view.wanted else "auto"
    say(f"\nwanted: {wanted}; generation {view.generation} of the state")
    if view.moving_to:
        say(f"the state moves to {', '.join(view.moving_to)}")
    say(f"the network {view.survives}")


def _row(hub: HubRow) -> list[str]:
    state = ("up" if hub.ready else "starting") if hub.alive else "gone"
    return [
        hub.name + (" *" if hub.this else ""),
        hub.id[:8],
        hub.addresses[0] if hub.addresses else "-",
        state,
        "yes" if hub.keeps_state else "no",
        "yes" if hub.leads else "",
    ]
