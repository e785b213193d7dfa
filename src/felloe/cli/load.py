"""`felloe load`"""

from typing import Annotated

import typer

from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, print_json, say
from felloe.cli.pull import show_progress
from felloe.console.messages import LoadRequest, Progress, PullRequest
from felloe.console.model_messages import ModelRow
from felloe.domain.roster import Replica


def load(
    name: Annotated[str, typer.Argument(help="A model of this node's store, or one that is approved.")],
    context: Annotated[int, typer.Option(help="Tokens one answer may hold; 0 chooses.")] = 0,
    slots: Annotated[int, typer.Option(help="Answers at once; 0 takes the configured default.")] = 0,
    keep: Annotated[bool, typer.Option(help="Load it again at each start.")] = True,
    json: JsonOption = False,
) -> None:
    """Load a model on this node and serve it to the network. What is approved and not here comes from other nodes."""
    client = OperatorClient()
    if not any(row.stored for row in client.ask("/models", list[ModelRow]) if row.model.name == name):
        show_progress(client.follow("/models/pull", PullRequest(name), Progress))
    replica = client.tell("/models/load", LoadRequest(name, context, slots, keep), Replica)
    if json:
        print_json(replica)
    else:
        say(f"{replica.model.name} is {replica.state}: {replica.slots} slots of {replica.context} tokens")
