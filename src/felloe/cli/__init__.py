"""The `felloe` command: one file a command. Parses, asks the running node, prints; decides nothing itself."""

from felloe.cli.main import main

__all__ = ["main"]
