"""Passphrases: typed without an echo, or piped in, one a line. Never an argument, never from the environment."""

import sys

import typer

from felloe.domain.errors import FelloeError

_LONGEST_LINE = 4096


def ask_passphrase(what: str, *, twice: bool = False) -> str:
    """The passphrase for `what`; a person who makes a new one types it `twice`."""
    if sys.stdin.isatty():
        return str(typer.prompt(f"Passphrase {what}", hide_input=True, confirmation_prompt=twice, err=True))
    line = sys.stdin.readline(_LONGEST_LINE)
    if not line:
        raise FelloeError("bad_passphrase", f"no passphrase {what} was given on standard input")
    return line.rstrip("\r\n")
