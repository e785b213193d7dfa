"""`felloe invite`"""

from typing import Annotated

import typer

from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, moment, print_json, print_table, say
from felloe.console.messages import InvitationCreated, InvitationRequest, InvitationRow, NameRequest, Nothing
from felloe.domain.errors import FelloeError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def invite(
    uses: Annotated[int, typer.Option(help="How many nodes may join with it.")] = 1,
    expires: Annotated[str, typer.Option(help="How long it is valid, for example 30m, 2h or 7d.")] = "1h",
    role: Annotated[str, typer.Option(help="What the invited nodes become.")] = "spoke",
    listed: Annotated[bool, typer.Option("--list", help="List the invitations that can still be used.")] = False,
    withdraw: Annotated[str, typer.Option(help="Withdraw the invitation with this id.")] = "",
    json: JsonOption = False,
) -> None:
    """Print a one-line token that lets a machine join. Run it on a hub."""
    client = OperatorClient()
    if listed:
        _list(client, json)
    elif withdraw:
        client.tell("/invitations/withdraw", NameRequest(withdraw), Nothing)
        say(f"withdrawn: {withdraw}")
    else:
        wanted = InvitationRequest(role=role, uses=uses, ttl_seconds=seconds_of(expires))
        created = client.tell("/invitations/create", wanted, InvitationCreated)
        # The token alone on standard output, so that it can be piped into `felloe join -`.
        print_json(created) if json else say(created.token)


def seconds_of(text: str) -> float:
    """`90`, `30m`, `2h`, `7d` in seconds."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    try:
        return float(number) * _UNITS[unit]
    except ValueError as error:
        raise FelloeError("invalid_value", f"{text!r} is no length of time such as 30m, 2h or 7d") from error


def _list(client: OperatorClient, json: bool) -> None:
    rows = client.ask("/invitations", list[InvitationRow])
    if json:
        print_json(rows)
        return
    print_table(
        ["ID", "ROLE", "USES LEFT", "EXPIRES"],
        [[row.id, row.role, str(row.uses_left), moment(row.expires_at)] for row in rows],
    )
