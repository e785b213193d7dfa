"""`felloe rotate`"""

from pathlib import Path
from typing import Annotated

import typer

from felloe.cli.client import OperatorClient
from felloe.cli.invite import seconds_of
from felloe.cli.output import JsonOption, moment, print_json, say
from felloe.cli.passphrase import ask_passphrase
from felloe.console.hub_messages import KeysReplaced, RotateRequest, SealedRoot
from felloe.domain.errors import FelloeError

_LARGEST_FILE = 16 << 10

NowOption = Annotated[bool, typer.Option("--now", help="Believe the old keys no more: after a theft.")]
RootOption = Annotated[Path | None, typer.Option("--root", help="The exported root, where it is not on this machine.")]


def rotate(
    now: NowOption = False,
    overlap: Annotated[str, typer.Option(help="How long the old keys are still believed; at most 30d.")] = "48h",
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Replace the network's signing keys. Run it on a hub, with the root key there or in a file.

    The passphrase of the file is asked for, or read from standard input.
    """
    request = RotateRequest(0.0 if now else seconds_of(overlap), sealed_root(root))
    show_replaced(OperatorClient().tell("/network/rotate", request, KeysReplaced), json=json)


def sealed_root(file: Path | None) -> SealedRoot | None:
    """What is needed to open an exported root."""
    if file is None:
        return None
    try:
        with file.expanduser().open("rb") as stream:
            data = stream.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise FelloeError("invalid_value", f"{file} cannot be read: {error.strerror}") from error
    if len(data) > _LARGEST_FILE:
        raise FelloeError("invalid_value", f"{file} is too large for an exported root")
    return SealedRoot(data, ask_passphrase(f"of {file.name}"))


def show_replaced(keys: KeysReplaced, *, json: bool) -> None:
    """What came of a replacement."""
    if json:
        print_json(keys)
        return
    say(f"new keys are in use (version {keys.version})")
    if keys.overlap_until:
        say(f"the old ones are believed until {moment(keys.overlap_until)}")
    else:
        say("the old ones are void; nodes that were away renew by themselves when they are back")
