"""`felloe models`"""

from typing import Annotated

import typer

from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, print_json, print_table, say, size
from felloe.console.messages import ModelRow, NameRequest, Nothing


def models(
    remove: Annotated[str, typer.Option(help="Remove this model from the store of this node.")] = "",
    json: JsonOption = False,
) -> None:
    """List the models of the network and of this node's store."""
    client = OperatorClient()
    if remove:
        client.tell("/models/remove", NameRequest(remove), Nothing)
        say(f"removed: {remove}")
        return
    rows = client.ask("/models", list[ModelRow])
    if json:
        print_json(rows)
        return
    print_table(
        ["MODEL", "SIZE", "QUANT", "CONTEXT", "CAN", "HERE", "LOADED ON"],
        [
            [
                row.model.name,
                size(row.model.size) if row.model.size else "-",
                row.model.quantisation or "-",
                str(row.model.context or "-"),
                ", ".join(row.model.capabilities),
                "yes" if row.stored else "no",
                ", ".join(
                    node + ("" if state == "ready" else f" ({state})") for node, state in sorted(row.replicas.items())
                )
                or "-",
            ]
            for row in rows
        ],
    )
