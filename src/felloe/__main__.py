"""`python -m felloe` is the `felloe` command."""

from felloe.cli import main

main()
