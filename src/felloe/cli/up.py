"""`felloe up`"""

from typing import Annotated

import typer


def up(
    name: Annotated[str, typer.Option(help="What people call this node; default: the host's name.")] = "",
    model: Annotated[
        list[str] | None, typer.Option(help="A model to serve: a name from the store, or what `felloe pull` takes.")
    ] = None,
) -> None:
    """Start this node and stay in the foreground. The first time, it founds a network and is its hub."""
    from felloe.node.config import home_folder
    from felloe.node.run import run_node

    run_node(home_folder(), name=name, models=model or [])
