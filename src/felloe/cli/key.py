"""`felloe key create|list|revoke`"""

from typing import Annotated

import typer

from felloe.cli.client import OperatorClient
from felloe.cli.invite import seconds_of
from felloe.cli.output import JsonOption, moment, print_json, print_table, say
from felloe.console.messages import KeyCreated, KeyRequest, KeyRow, NameRequest

app = typer.Typer(help="API keys. A key made on a hub is valid on every node of the network.", no_args_is_help=True)


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Who or what uses it.")],
    expires: Annotated[str, typer.Option(help="For example 30d; default: never.")] = "0",
    json: JsonOption = False,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    created = OperatorClient().tell("/keys/create", KeyRequest(name, seconds_of(expires)), KeyCreated)
    print_json(created) if json else say(created.key)


@app.command("list")
def list_keys(json: JsonOption = False) -> None:
    """List the keys, without their secrets."""
    rows = OperatorClient().ask("/keys", list[KeyRow])
    if json:
        print_json(rows)
        return
    print_table(
        ["ID", "NAME", "CREATED", "EXPIRES"],
        [[row.id, row.name, moment(row.created_at), moment(row.expires_at)] for row in rows],
    )


@app.command("revoke")
def revoke(name: Annotated[str, typer.Argument(help="The id of the key.")]) -> None:
    """Revoke a key, at once and on every node that can be reached."""
    row = OperatorClient().tell("/keys/revoke", NameRequest(name), KeyRow)
    say(f"revoked: {row.id} ({row.name})")
