"""`felloe promote`"""

from typing import Annotated

import typer

from felloe.cli.changes import follow_change
from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption
from felloe.console.hub_messages import ChangeStep
from felloe.console.messages import NameRequest


def promote(
    node: Annotated[str, typer.Argument(help="Name or id of the node.")],
    json: JsonOption = False,
) -> None:
    """Make a node a hub. Run it on a hub; what was begun goes on, also when this command is ended."""
    steps = OperatorClient().follow("/hubs/promote", NameRequest(node), ChangeStep)
    follow_change(steps, f"{node} is a hub", json=json)
