"""`felloe revoke`"""

from typing import Annotated

import typer

from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, moment, print_json, print_table, warn
from felloe.console.hub_messages import Consequence, Removal
from felloe.console.messages import NameRequest


def revoke(
    node: Annotated[str, typer.Argument(help="Name or id of the node.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonOption = False,
) -> None:
    """Remove a node from the network at once and for good, for instance one that was stolen. Run it on a hub."""
    client, request = OperatorClient(), NameRequest(node)
    if not yes:
        consequence = client.tell("/members/revocation", request, Consequence)
        if consequence.asks:
            typer.confirm(f"{consequence.sentence} Go on?", abort=True, err=True)
    removal = client.tell("/members/revoke", request, Removal)
    if json:
        print_json(removal)
    else:
        print_table(
            ["NODE", "ID", "ROLE", "JOINED", "REMOVED"],
            [[removal.name, removal.id, removal.role, moment(removal.joined_at), moment(removal.revoked_at)]],
        )
    if removal.was_hub:
        warn("it held the network's signing keys: run `felloe rotate --now`")
