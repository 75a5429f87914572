"""`pronghorn bench`: measuring on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pronghorn.cli import show
from pronghorn.cli.bench_speculate import speculate as speculate
from pronghorn.cli.options import MODEL, Threads, Use
from pronghorn.errors import RequestError

if TYPE_CHECKING:
    from pronghorn.bench.cells import Cell
    from pronghorn.bench.engines import Launch
    from pronghorn.bench.limits import Probe
    from pronghorn.bench.record import Record


def bench() -> None:
    """Measure this machine and Pronghorn on it."""


def speed(
    model: Annotated[
        str, typer.Argument(help="Bundled model, folder, file or hub name; the bundled one without it.")
    ] = "",
    shape: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Random weights in a real shape: smollm2-135m, qwen2.5-0.5b or llama-3.2-1b.",
        ),
    ] = "",
    use: Use = [],  # noqa: B006  (Typer copies it)
    threads: Threads = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cells and rounds.")] = False,
    only: Annotated[
        list[str], typer.Option(metavar="KIND", help="start, prefill, decode or rows; repeat it.")
    ] = [],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=0, help="Counted rounds; 0: 5, or 3 with --quick.")] = 0,
    profile: Annotated[
        bool, typer.Option("--profile", help="Instead say which part of a step takes how long, and why.")
    ] = False,
    against: Annotated[
        str,
        typer.Option(
            metavar="PEERS",
            help="Peers in turns with ours: llama.cpp,openvino,onnxruntime,vllm,transformers. "
            "`bench/peers/build.py` of a checkout installs them.",
        ),
    ] = "",
    precision: Annotated[
        str, typer.Option(help="Of the peers: bf16, int8 or int4; that of our format without it.")
    ] = "",
    peers_folder: Annotated[
        str, typer.Option("--peers", metavar="FOLDER", help="Where the peers' environments are.")
    ] = "",
    json_file: Annotated[
        str, typer.Option("--json", metavar="FILE", help="Write everything measured as JSON.")
    ] = "",
    plot: Annotated[
        str, typer.Option("--plot", metavar="FILE.svg", help="Draw the roofline with every cell in it.")
    ] = "",
    directory: Annotated[
        str,
        typer.Option("--dir", metavar="FOLDER", help="For checkpoints and what peers make of them."),
    ] = "",
) -> int:
    """Measure prefill, decoding, steps of many rows, start and memory, each against what this machine can
    do at most: its memory bandwidth and arithmetic peaks are measured beside every figure.

    Engines run without drafts and stored prompts. "Of limit" is the shortest time in which the weights
    and stored keys and values could be read, or the products be done, over the time measured.

    [bold]Examples[/bold]

      pronghorn bench speed --shape qwen2.5-0.5b --use int8 --quick

      pronghorn bench speed --shape smollm2-135m --use int8 --against llama.cpp,openvino

      pronghorn bench speed --shape llama-3.2-1b --use int4 --profile

      pronghorn bench speed org/name --only decode --only rows --json speed.json
    """
    from pronghorn.bench.cells import plan
    from pronghorn.bench.engines import ours
    from pronghorn.bench.limits import Probe, machine
    from pronghorn.bench.peers import PRECISIONS, environments, peers, precision_of
    from pronghorn.bench.picture import roofline
    from pronghorn.bench.record import Record
    from pronghorn.bench.report import tell
    from pronghorn.bench.shapes import cache, find_shape, make
    from pronghorn.llm import find_model
    from pronghorn.model.checkpoint import locate

    use = [weight_first(u) for u in use]
    if model and shape:
        raise RequestError("a model and --shape are both given: choose one")
    cells = plan(quick, only)
    home = Path(directory) if directory else cache() / "bench"
    if shape:
        made = find_shape(shape)
        with show.progress(f"writing {shape}") as bar:
            make(made, home / shape, bar)
    place = home / shape if shape else locate(find_model(model or MODEL))
    names = [n.strip() for n in against.split(",") if n.strip()]
    precision = precision or (precision_of(use) if names else "")
    if precision not in ("", *PRECISIONS):
        raise RequestError(f"no precision called {precision!r}; known: {', '.join(PRECISIONS)}")
    for path in (json_file, plot):
        if path and not Path(path).absolute().parent.is_dir():
            raise RequestError(f"{path} cannot be written: its folder is not there")
    probe = Probe(threads)
    folder = Path(peers_folder) if peers_folder else environments()
    others = peers(names, place, precision, probe.threads, home / "made", folder)
    launches = [ours(str(place), use, probe.threads, home), *others]
    record = Record(
        machine(), shape or model or MODEL, tuple(use), precision, probe.threads,
        probe.round_trip(),
    )  # fmt: skip
    starts = 1 if profile or (only and "start" not in only) else 2 if quick else 4
    try:
        _measure(record, probe, launches, cells, rounds or (3 if quick else 5), starts, profile)
    except KeyboardInterrupt:
        tell(record)
        print("Stopped: this is what was measured so far.")
        raise
    finally:
        if json_file:
            Path(json_file).write_text(json.dumps(record.data()), encoding="utf-8")
        if plot:
            Path(plot).write_text(roofline(record), encoding="utf-8")
    tell(record)
    return 0


def weight_first(spec: str) -> str:
    """Of a name that is a format of weights and something else too, the format is meant here."""
    from pronghorn.compose import names

    name = spec.partition(":")[0]
    return f"weight.{spec}" if name in names()["weight"] else spec


def _measure(
    record: Record,
    probe: Probe,
    launches: list[Launch],
    cells: list[Cell],
    rounds: int,
    starts: int,
    profile: bool,
) -> None:
    """Start the engines and run the cells: rows together, everything else cell by cell."""
    from pronghorn.bench.cells import profiled
    from pronghorn.bench.race import Race

    with bars() as tick, Race(launches, probe, record, rounds, tick) as race:
        race.prepare()
        race.start(starts)
        context = record.costs.context if record.costs else 0
        if profile:
            for cell in profiled():
                if cell.fits(context):
                    race.profile(cell)
            return
        cells = [c for c in cells if c.fits(context)]
        rows = [c for c in cells if c.kind == "rows"]
        for group in [rows, *([c] for c in cells if c.kind != "rows")]:
            if group:
                race.run(group)


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr that says what is being measured."""
    import sys

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
