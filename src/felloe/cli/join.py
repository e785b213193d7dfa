"""`felloe join`"""

import sys
from typing import Annotated

import typer

from felloe.cli.output import say
from felloe.domain.errors import FelloeError

_LONGEST_TOKEN = 4096


def join(
    token: Annotated[str, typer.Argument(help="The invitation, or `-` to read it from standard input.")],
    name: Annotated[str, typer.Option(help="What people call this node; default: the host's name.")] = "",
    model: Annotated[
        list[str] | None, typer.Option(help="A model to serve: a name from the store, or what `felloe pull` takes.")
    ] = None,
    start: Annotated[bool, typer.Option(help="Start the node after joining.")] = True,
) -> None:
    """Join a network with an invitation, then start. `-` keeps the token out of the shell's history."""
    from felloe.node.config import home_folder
    from felloe.node.run import join_network, run_node

    if token == "-":  # noqa: S105 - the conventional name of standard input
        token = sys.stdin.readline(_LONGEST_TOKEN).strip()
    if not token:
        raise FelloeError("bad_token", "there is no token on standard input")
    home = home_folder()
    membership = join_network(home, token, name)
    say(f"joined network {membership.network} as {membership.role} {membership.node}")
    if start:
        run_node(home, name=name, models=model or [])
