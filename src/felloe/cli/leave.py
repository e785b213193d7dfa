"""`felloe leave`"""

from typing import Annotated

import typer

from felloe.cli.output import say


def leave(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Leave the network: stop this node, delete its keys and credentials. The models in its store stay."""
    from felloe.node.config import home_folder
    from felloe.node.departure import describe, leave_network

    home = home_folder()
    if not yes:
        typer.confirm(f"{describe(home)} Go on?", abort=True)
    leave_network(home)
    say("left the network; the models in the store are still here")
