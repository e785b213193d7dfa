"""`felloe load`"""

from typing import Annotated

import typer

from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, print_json, say
from felloe.console.messages import LoadRequest
from felloe.domain.roster import Replica


def load(
    name: Annotated[str, typer.Argument(help="A model of this node's store.")],
    context: Annotated[int, typer.Option(help="Tokens one answer may hold; 0 chooses.")] = 0,
    slots: Annotated[int, typer.Option(help="Answers at once; 0 takes the configured default.")] = 0,
    keep: Annotated[bool, typer.Option(help="Load it again at each start.")] = True,
    json: JsonOption = False,
) -> None:
    """Load a model on this node and serve it to the network."""
    replica = OperatorClient().tell("/models/load", LoadRequest(name, context, slots, keep), Replica)
    if json:
        print_json(replica)
    else:
        say(f"{replica.model.name} is {replica.state}: {replica.slots} slots of {replica.context} tokens")
