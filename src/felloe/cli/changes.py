"""How a change of the hubs is shown while it goes on."""

from collections.abc import Iterator

import msgspec
from rich.console import Console

from felloe.cli.output import say
from felloe.console.hub_messages import ChangeStep


def follow_change(steps: Iterator[ChangeStep], done: str, *, json: bool) -> None:
    """Each step as it comes, on standard error or as lines of JSON; `done` at the end, for people."""
    console = Console(stderr=True, highlight=False, markup=False)
    for step in steps:
        if json:
            say(msgspec.json.encode(step).decode())
        elif step.says:
            console.print(step.says, soft_wrap=True)
    if not json:
        say(done)
