"""The command line: which commands there are, and how a run of one ends.

Nothing heavy is imported here, and each command imports what it needs in its own body: the first token
of `pronghorn run` should not wait for what only `pronghorn verify` uses.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

HELP = """Run language models fast on this machine, and be told what each speed-up costs.

[bold]Examples[/bold]

  pronghorn run "The code of the gate is 52817. What is the code of the gate?"

  pronghorn chat --model org/name

  pronghorn methods
"""


def build() -> Any:
    """The Typer application."""
    import typer

    from pronghorn.cli.run import run

    app = typer.Typer(
        name="pronghorn",
        help=HELP,
        rich_markup_mode="rich",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(invoke_without_command=True)
    def root(
        context: typer.Context,
        version: bool = typer.Option(False, "--version", help="Print the version and leave."),
    ) -> None:
        if version:
            from pronghorn import __version__

            print(f"pronghorn {__version__}")
            raise typer.Exit
        if context.invoked_subcommand is None:
            print(context.get_help())

    for command in (run,):
        app.command()(command)
    return app


def main(args: Sequence[str] | None = None) -> None:
    """Entry point. Raises SystemExit: 0 done, 1 a check failed, 2 an error of use or input, 70 a bug of
    ours, 130 interrupted, 141 the reader of our output went away."""
    from pronghorn.cli.ending import ending

    argv = list(sys.argv[1:] if args is None else args)
    raise SystemExit(ending(lambda: _call(argv)))


def _call(argv: list[str]) -> Any:
    import typer

    return typer.main.get_command(build()).main(argv, prog_name="pronghorn", standalone_mode=False)


if __name__ == "__main__":
    main()
