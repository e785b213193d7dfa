"""`felloe publish`"""

from typing import Annotated

import typer

from felloe.cli.catalog import standing
from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, print_json, say
from felloe.console.catalog_messages import CatalogRow
from felloe.console.messages import NameRequest


def publish(
    name: Annotated[str, typer.Argument(help="A model of this node's store.")],
    json: JsonOption = False,
) -> None:
    """Ask the curators to approve a model; a pull does this by itself."""
    row = OperatorClient().tell("/catalog/publish", NameRequest(name), CatalogRow)
    print_json(row) if json else say(f"{row.name}  {row.content[:12]}  {standing(row)}")
