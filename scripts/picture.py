"""Draw docs/picture.svg: what `pronghorn run` really prints in a terminal, colours and all."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
PROMPT = (
    "Repeat exactly:\n"
    "The quick brown fox jumps over the lazy dog, and the old lantern keeper counts 4821 boats in the grey "
    "harbour."
)


def terminal(command: list[str]) -> str:
    """Everything that a command prints when it believes to be in a terminal."""
    parent, child = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    env.pop("NO_COLOR", None)
    process = subprocess.Popen(command, stdout=child, stderr=child, stdin=subprocess.DEVNULL, env=env, cwd=ROOT)
    os.close(child)
    out = b""
    try:
        while part := os.read(parent, 4096):
            out += part
    except OSError:  # Linux's way to say that the other end is closed
        pass
    process.wait()
    return out.decode()


def main() -> None:
    console = Console(record=True, width=100, file=Path(os.devnull).open("w"))
    shown = PROMPT.replace("\n", "\\n").replace("4821 boats", "4821\n  boats")
    console.print(f"[bold]$[/bold] pronghorn run $'{shown}'", highlight=False)
    run = [sys.executable, "-m", "pronghorn.cli.main", "run", PROMPT]
    terminal(run)  # the first run reads the files into the page cache
    console.print(Text.from_ansi(terminal(run).replace("\r", "").strip()))
    svg = console.export_svg(title="pronghorn", clear=False)
    (ROOT / "docs" / "picture.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
