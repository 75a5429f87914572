"""`pronghorn` without a command: help or the version."""

from __future__ import annotations

from typing import Annotated

import typer

HELP = """Run language models fast on this machine, and be told what each speed-up costs.

[bold]Examples[/bold]

  pronghorn run "The code of the gate is 52817. What is the code of the gate?"

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
