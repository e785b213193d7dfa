"""`felloe root show|export|rotate`"""

from pathlib import Path
from typing import Annotated

import typer

from felloe.cli.client import OperatorClient
from felloe.cli.invite import seconds_of
from felloe.cli.output import JsonOption, moment, print_json, print_table, say
from felloe.cli.passphrase import ask_passphrase
from felloe.cli.rotate import NowOption, RootOption, sealed_root, show_replaced
from felloe.console.hub_messages import (
    KeysReplaced,
    RootExported,
    RootExportRequest,
    RootRotateRequest,
    RootView,
    TrustedRow,
)

app = typer.Typer(
    help="The network's root key, which vouches for its hubs. It is needed to replace keys only, so keep it offline.",
    no_args_is_help=True,
)


@app.command("show")
def show(json: JsonOption = False) -> None:
    """Show the root's pin, whether its key is on this machine, and who may issue."""
    view = OperatorClient().ask("/root", RootView)
    if json:
        print_json(view)
        return
    here = "on this machine" if view.here else "not on this machine"
    exported = f", exported {moment(view.exported_at)}" if view.exported_at else ""
    say(f"network: {view.network}\nroot:    {view.pin}\nkey:     {here}{exported}\n")
    rows = [_row("root", root) for root in view.roots] + [_row("issuer", issuer) for issuer in view.issuers]
    print_table(["KIND", "PIN", "BELIEVED UNTIL"], rows)
    say(f"\nversion {view.version} of the trust list")


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(help="A new file; keep it on a stick or in a safe, not here.")],
    remove: Annotated[bool, typer.Option("--remove", help="Then delete the key from this machine.")] = False,
    json: JsonOption = False,
) -> None:
    """Write the root key to a file, encrypted with a passphrase of 10 characters or more.

    The passphrase is asked for twice, or read from standard input. Without it the file is of no use.
    """
    request = RootExportRequest(_absolute(file), ask_passphrase(f"for {file.name}", twice=True), remove)
    done = OperatorClient().tell("/root/export", request, RootExported)
    if json:
        print_json(done)
        return
    say(f"{done.path} opens with the passphrase")
    say("the key is on this machine no more" if done.removed else "the key is still on this machine, too")


@app.command("rotate")
def rotate(
    now: NowOption = False,
    overlap: Annotated[str, typer.Option(help="How long old join tokens and keys are still believed.")] = "30d",
    root: RootOption = None,
    export: Annotated[Path | None, typer.Option("--export", help="Write the new root to this new file.")] = None,
    json: JsonOption = False,
) -> None:
    """Replace the root key itself, and with it all signing keys. Run it on a hub."""
    sealed = sealed_root(root)
    passphrase = ask_passphrase(f"for {export.name}", twice=True) if export is not None else ""
    request = RootRotateRequest(
        overlap_seconds=0.0 if now else seconds_of(overlap),
        root=sealed,
        export_path="" if export is None else _absolute(export),
        export_passphrase=passphrase,
    )
    done = OperatorClient().tell("/root/rotate", request, KeysReplaced)
    show_replaced(done, json=json)
    if json:
        return
    say(f"root: {done.pin}")
    if done.withdrawn:
        say(f"open invitations withdrawn: {done.withdrawn}; make new ones with felloe invite")
    if done.exported:
        say(f"the new root is in {done.exported}" + (" and on this machine" if done.here else ""))
    else:
        say("the new root lies only on this machine: felloe root export FILE")


def _absolute(file: Path) -> str:
    return str(file.expanduser().absolute())


def _row(kind: str, trusted: TrustedRow) -> list[str]:
    until = f"{moment(trusted.until)} (retiring)" if trusted.until else moment(trusted.certificate_ends)
    return [kind, trusted.pin[:16], until]
