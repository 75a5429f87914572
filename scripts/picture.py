"""Draw docs/picture.svg: what `pronghorn run` really prints in a terminal, colours and all."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "Repeat exactly:\nThe quick brown fox jumps over the lazy dog and counts 4821 boats."


def terminal(command: list[str]) -> str:
    """Everything that a command prints when it believes to be in a terminal."""
    parent, child = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    env.pop("NO_COLOR", None)
    process = subprocess.Popen(
        command, stdout=child, stderr=child, stdin=subprocess.DEVNULL, env=env, cwd=ROOT
    )
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
    console = Console(record=True, width=100, file=StringIO())
    shown = PROMPT.replace("\n", "\\n")
    console.print(Text.assemble(("$ ", "bold"), f"pronghorn run $'{shown}'"))
    run = [sys.executable, "-m", "pronghorn.cli.main", "run", PROMPT]
    terminal(run)  # the first run reads the files into the page cache
    console.print(Text.from_ansi(terminal(run).replace("\r", "").strip()))
    plain = re.sub(
        r"@font-face \{\{.*?\}\}\n|<!--.*?-->", "", CONSOLE_SVG_FORMAT, flags=re.S
    )  # no fonts fetched
    svg = console.export_svg(title="pronghorn", code_format=plain)
    (ROOT / "docs" / "picture.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
