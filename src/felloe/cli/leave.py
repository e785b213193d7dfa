"""`felloe leave`"""

from typing import Annotated

import typer

from felloe.cli.output import say


def leave(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Leave although this is a hub, or a hub refuses it.")] = False,
) -> None:
    """Leave the network: stop this node, tell a hub, delete its keys and credentials. The models in its store stay."""
    from felloe.node.config import home_folder
    from felloe.node.departure import describe, leave_network

    home = home_folder()
    sentence = describe(home, force=force)
    if not yes:
        typer.confirm(f"{sentence} Go on?", abort=True)
    told = leave_network(home, force=force)
    say("left the network; the models in the store are still here")
    if told:
        say(told)
