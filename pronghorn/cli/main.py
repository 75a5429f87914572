"""The command line: which commands there are.

Nothing heavy is imported here, and each command imports what it needs in its own body: the first token
of `pronghorn run` should not wait for what only `pronghorn verify` uses.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from pronghorn.cli.ending import ending
from pronghorn.errors import RequestError

COMMANDS = (  # in modules of their names
    "run", "chat", "info", "methods", "explain", "verify", "convert", "quantize", "calibrate",
    "bench", "datastore", "serve", "batch",
)  # fmt: skip
GROUPS = {  # commands that have commands
    "calibrate": ("skip_set", "heads", "channels", "codebooks"), "bench": ("speed", "speculate", "kv"),
    "datastore": ("build", "info"),
}  # fmt: skip


def build(names: Sequence[str] = COMMANDS) -> Any:
    """The Typer application with these commands."""
    import typer

    from pronghorn.cli.root import HELP, root

    app = typer.Typer(
        help=HELP,
        rich_markup_mode="rich",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(root)
    for name in names:
        module = import_module(f"pronghorn.cli.{name}")
        if name not in GROUPS:
            app.command()(getattr(module, name))
            continue
        group = typer.Typer(callback=getattr(module, name), rich_markup_mode="rich", no_args_is_help=True)
        for inner in GROUPS[name]:
            group.command()(getattr(module, inner))
        app.add_typer(group, name=name)
    return app


def main(args: Sequence[str] | None = None) -> None:
    """Entry point. Always raises SystemExit; `ending` says with which status."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the shell closed it
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  (until the end)
    argv = list(sys.argv[1:] if args is None else args)
    raise SystemExit(ending(lambda: _call(argv)))


def _call(argv: list[str]) -> Any:
    """What the command returns. Typer's own way of ending is left out: it knows other statuses."""
    import typer

    asked = next((a for a in argv if not a.startswith("-")), "")
    command = typer.main.get_group(build((asked,) if asked in COMMANDS else COMMANDS))
    _check_name(asked)
    try:
        with command.make_context("pronghorn", argv) as context:
            return command.invoke(context)
    except typer.Exit as end:
        return end.exit_code


def _check_name(name: str) -> None:
    """Name the nearest command, which only some versions of Typer do."""
    if name and name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(COMMANDS))}"
        raise RequestError(f"no command called {name!r}; {hint}")


if __name__ == "__main__":
    main()
