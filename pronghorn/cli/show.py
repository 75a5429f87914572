"""Tables, numbers and progress for people; rich is imported when one is shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pronghorn.cli.ending import printable


def as_json(data: Any) -> None:
    """One JSON document on stdout. Numbers that are not finite become null, as JSON has none."""
    print(json.dumps(_finite(data), ensure_ascii=True, allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(k): _finite(v) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(v) for v in data]
    if isinstance(data, float) and not -float("inf") < data < float("inf"):
        return None
    return data


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> None:
    """A table on stdout. right: columns of numbers."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=_box(), header_style="bold", pad_edge=False)
    for i, name in enumerate(columns):
        made.add_column(name, justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    console = _console()
    console.print(Text(printable(title), style="bold"))
    console.print(made)


def facts(title: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Names and values in two columns, on stdout."""
    from rich.table import Table
    from rich.text import Text

    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(name, Text(printable(value)))
    console = _console()
    if title:
        console.print(Text(printable(title), style="bold"))
    console.print(made)


def _box() -> Any:
    from rich import box

    return box.SIMPLE_HEAD


def _console() -> Any:
    """stdout; a pipe gets lines that are wide enough not to be folded."""
    from rich.console import Console

    class Ours(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would end the process with a status of its own

    return Ours() if sys.stdout.isatty() else Ours(width=200)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, moved by calling with (done, total); nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def size(n: float) -> str:
    """Bytes for people, in powers of 1,024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


def count(n: float) -> str:
    """A number of parameters for people: 4.0 M."""
    for unit in ("", " K", " M", " B"):
        if n < 1000:
            return f"{n:.0f}{unit}" if not unit or n >= 100 else f"{n:.1f}{unit}"
        n /= 1000
    return f"{n:.1f} T"
