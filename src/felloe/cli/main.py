"""The list of commands, and what every one of them shares: errors, exit codes, Ctrl-C."""

import sys

import typer

from felloe.cli import (
    approve,
    catalog,
    chat,
    curators,
    demo,
    demote,
    doctor,
    drain,
    fit,
    hardware,
    hubs,
    invite,
    join,
    key,
    leave,
    load,
    models,
    plan,
    promote,
    ps,
    publish,
    pull,
    recover,
    reject,
    retire,
    revoke,
    root,
    rotate,
    serve,
    unload,
    up,
    upstream,
    version,
    withdraw,
)
from felloe.cli.output import EXIT_INTERRUPTED, complain, exit_code
from felloe.domain.errors import FelloeError

_EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the node is not running, 4 refused, 130 ended by Ctrl-C. "
    "State lies in $FELLOE_HOME (default ~/.felloe)."
)


def create_app() -> typer.Typer:
    """Every command, in the order in which a newcomer meets them."""
    app = typer.Typer(
        name="felloe",
        help="One private AI network from the machines you own.",
        epilog=_EPILOG,
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command("up")(up.up)
    app.command("invite")(invite.invite)
    app.command("join")(join.join)
    app.command("leave")(leave.leave)
    app.command("ps")(ps.ps)
    app.command("hardware")(hardware.hardware)
    app.command("fit")(fit.fit)
    app.command("plan")(plan.plan)
    app.command("hubs")(hubs.hubs)
    app.command("promote")(promote.promote)
    app.command("demote")(demote.demote)
    app.add_typer(models.app, name="models")
    app.command("pull")(pull.pull)
    app.command("publish")(publish.publish)
    app.command("approve")(approve.approve)
    app.command("reject")(reject.reject)
    app.command("withdraw")(withdraw.withdraw)
    app.add_typer(catalog.app, name="catalog")
    app.add_typer(curators.app, name="curators")
    app.command("load")(load.load)
    app.command("unload")(unload.unload)
    app.command("serve")(serve.serve)
    app.command("retire")(retire.retire)
    app.command("drain")(drain.drain)
    app.command("chat")(chat.chat)
    app.add_typer(key.app, name="key")
    app.add_typer(upstream.app, name="upstream")
    app.command("revoke")(revoke.revoke)
    app.command("recover")(recover.recover)
    app.command("rotate")(rotate.rotate)
    app.add_typer(root.app, name="root")
    app.command("doctor")(doctor.doctor)
    app.command("demo")(demo.demo)
    app.command("version")(version.version)
    return app


def main() -> None:
    """Run the command line; the process's entry point."""
    try:
        create_app()()
    except FelloeError as error:
        complain(error)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
