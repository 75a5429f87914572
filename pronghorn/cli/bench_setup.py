"""What the commands of `pronghorn bench` have in common: options, the model and the peers that they measure,
and how they tell what they have."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pronghorn.cli import show
from pronghorn.cli.options import MODEL, weight_first
from pronghorn.errors import RequestError

Model = Annotated[
    str, typer.Argument(help="Bundled model, folder, file or hub name; the bundled one without it.")
]
Shape = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Random weights in a real shape: smollm2-135m, qwen2.5-0.5b or llama-3.2-1b.",
    ),
]
Precision = Annotated[
    str, typer.Option(help="Of the peers: bf16, int8 or int4; that of our format without it.")
]
Peers = Annotated[
    str, typer.Option("--peers", metavar="FOLDER", help="Where the peers' environments are.")
]  # fmt: skip
Json = Annotated[str, typer.Option("--json", metavar="FILE", help="Write everything measured as JSON.")]
Directory = Annotated[
    str, typer.Option("--dir", metavar="FOLDER", help="For checkpoints and what peers make of them.")
]


@dataclass(frozen=True)
class Subject:
    """What is measured. name: of the model, for people; place: its checkpoint; use: our methods; peers: by
    name; precision: theirs, "" without any; environments: where they are; home: for what is made."""

    name: str
    place: Path
    use: list[str]
    peers: list[str]
    precision: str
    environments: Path
    home: Path

    @property
    def made(self) -> Path:
        """What peers make of models."""
        return self.home / "made"


def subject(
    model: str, shape: str, use: Sequence[str], against: str, precision: str, peers: str, directory: str
) -> Subject:
    """What these options say; a shape is written if need be. Raises `RequestError`."""
    from pronghorn.bench.peers import PRECISIONS, environments, precision_of
    from pronghorn.bench.shapes import cache, find_shape, make
    from pronghorn.llm import find_model
    from pronghorn.model.checkpoint import locate

    use = [weight_first(u) for u in use]
    if model and shape:
        raise RequestError("a model and --shape are both given: choose one")
    if precision not in ("", *PRECISIONS):
        raise RequestError(f"no precision called {precision!r}; known: {', '.join(PRECISIONS)}")
    names = [n.strip() for n in against.split(",") if n.strip()]
    precision = (precision or precision_of(use)) if names else ""
    home = Path(directory) if directory else cache() / "bench"
    if shape:
        made = find_shape(shape)
        with show.progress(f"writing {shape}") as bar:
            make(made, home / shape, bar)
    place = home / shape if shape else locate(find_model(model or MODEL))
    where = Path(peers) if peers else environments()
    return Subject(shape or model or MODEL, place, use, names, precision, where, home)


def writable(*files: str) -> None:
    """Raises `RequestError` for a file whose folder is not there; "" is no file."""
    for path in files:
        if path and not Path(path).absolute().parent.is_dir():
            raise RequestError(f"{path} cannot be written: its folder is not there")


@contextmanager
def telling(tell: Callable[[], None], *files: tuple[str, Callable[[], str]]) -> Iterator[None]:
    """Tell and write what was measured inside, also when it was cut short. files: path, "" for none, and what
    makes the text."""
    try:
        yield
    except KeyboardInterrupt:
        tell()
        print("Stopped: this is what was measured so far.")
        raise
    finally:
        for path, text in files:
            if path:
                Path(path).write_text(text(), encoding="utf-8")
    tell()


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr that says what is being measured."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
