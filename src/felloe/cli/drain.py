"""`felloe drain`"""

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console

from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, say
from felloe.console.messages import DrainRequest, DrainStep


def drain(
    node: Annotated[str, typer.Argument(help="Name or id of the node; default: this one.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds that running answers get to finish.")] = 300.0,
    json: JsonOption = False,
) -> None:
    """Stop a node without breaking an answer: nothing new goes there, what runs is finished first.

    Another node is drained from a hub. Once begun it goes on, also when this command is ended; asked again it only
    changes the time that is left.
    """
    from felloe.node.config import home_folder
    from felloe.node.departure import lock_when_free
    from felloe.node.home import Home

    steps = OperatorClient().follow("/drain", DrainRequest(node, timeout), DrainStep)
    last = _tell_json(steps) if json else _tell(steps)
    if not last.node:
        lock_when_free(Home(home_folder()))
    if not json:
        which = f"{last.node}: " if last.node else ""
        done = "drained and stopped" if not last.running else f"stopped; {_answers(last.running)} went on elsewhere"
        say(which + done)


def _tell_json(steps: Iterator[DrainStep]) -> DrainStep:
    import msgspec

    last = DrainStep()
    for last in steps:
        say(msgspec.json.encode(last).decode())
    return last


def _tell(steps: Iterator[DrainStep]) -> DrainStep:
    console = Console(stderr=True, highlight=False)
    last = DrainStep()
    for step in steps:
        if step.only_here != last.only_here:
            models = ", ".join(step.only_here)
            console.print(f"no other node serves {models}: requests for it wait or fail until one does")
        if step.running != last.running and not step.ended:
            console.print(f"waiting for {_answers(step.running)}")
        last = step
    return last


def _answers(count: int) -> str:
    return f"{count} running answer{'' if count == 1 else 's'}"
