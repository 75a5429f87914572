"""`pronghorn` without a command: help or the version."""

from __future__ import annotations

from typing import Annotated

import typer

HELP = """Run language models fast on this machine, and be told what each speed-up costs.

[bold]Examples[/bold]

  pronghorn run "The secret number of Anna is 4821. What is the secret number of Anna?"

  pronghorn chat --model org/name

  pronghorn methods
"""


def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        from pronghorn import __version__

        print(f"pronghorn {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
