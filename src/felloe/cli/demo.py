"""`felloe demo`"""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    model: Annotated[Path | None, typer.Option(help="A GGUF file instead of the tiny model that comes along.")] = None,
    api_port: Annotated[int, typer.Option(help="The hub's API port; the spokes take others that are free.")] = 8470,
) -> None:
    """Run one hub and two spokes on this machine, the tiny model on the spokes, until Ctrl-C."""
    from felloe.node.config import home_folder
    from felloe.node.demo import run_demo

    run_demo(home_folder() / "demo", model=model, api_port=api_port)
