"""`felloe curators list|key|add|remove|threshold`"""

from typing import Annotated

import typer

from felloe.cli.client import OperatorClient
from felloe.cli.decisions import decide
from felloe.cli.output import JsonOption, print_json, print_table, say
from felloe.console.catalog_messages import CuratorKey, CuratorRequest, CuratorsView
from felloe.console.messages import NameRequest

app = typer.Typer(help="Who decides which models the network may load.", no_args_is_help=True)
ReasonOption = Annotated[str, typer.Option(help="Why, for the log.")]


@app.command("list")
def list_curators(json: JsonOption = False) -> None:
    """List the curators and how many of them must agree."""
    view = OperatorClient().ask("/curators", CuratorsView)
    if json:
        print_json(view)
        return
    print_table(["CURATOR", "KEY"], [[row.name + (" *" if row.this else ""), row.key] for row in view.curators])
    say(f"\n{view.threshold} of {len(view.curators)} must agree")
    for sentence in view.waiting:
        say(sentence)


@app.command("key")
def key(
    name: Annotated[str, typer.Option(help="What others call this curator; default: the node's name.")] = "",
    json: JsonOption = False,
) -> None:
    """Make a curator key on this node, unless it has one, and print the public half for `felloe curators add`."""
    made = OperatorClient().tell("/curators/key", NameRequest(name), CuratorKey)
    print_json(made) if json else say(made.text)


@app.command("add")
def add(
    curator: Annotated[str, typer.Argument(help="What `felloe curators key` printed on the other node.")],
    reason: ReasonOption = "",
    json: JsonOption = False,
) -> None:
    """Let somebody else decide, too. How many must agree stays the same; see `threshold`."""
    decide(CuratorRequest("add_curator", curator, reason=reason), json=json)


@app.command("remove")
def remove(
    curator: Annotated[str, typer.Argument(help="The curator's name, or the beginning of the key.")],
    reason: ReasonOption = "",
    json: JsonOption = False,
) -> None:
    """Let somebody decide no more, for instance because the key was stolen. What is approved stays approved."""
    decide(CuratorRequest("remove_curator", curator, reason=reason), json=json)


@app.command("threshold")
def threshold(
    count: Annotated[int, typer.Argument(min=1, help="How many curators must agree.")],
    reason: ReasonOption = "",
    json: JsonOption = False,
) -> None:
    """Set how many curators must agree, about models and about curators."""
    decide(CuratorRequest("set_threshold", threshold=count, reason=reason), json=json)
