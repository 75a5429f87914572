"""`pronghorn bench`: measuring on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from pronghorn.cli import bench_setup as setup
from pronghorn.cli.bench_kv import kv as kv
from pronghorn.cli.bench_speculate import speculate as speculate
from pronghorn.cli.options import Threads, Use

if TYPE_CHECKING:
    from pronghorn.bench.cells import Cell
    from pronghorn.bench.engines import Launch
    from pronghorn.bench.limits import Probe
    from pronghorn.bench.record import Record


def bench() -> None:
    """Measure this machine and Pronghorn on it."""


def speed(
    model: setup.Model = "",
    shape: setup.Shape = "",
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
    precision: setup.Precision = "",
    peers_folder: setup.Peers = "",
    json_file: setup.Json = "",
    plot: Annotated[
        str, typer.Option("--plot", metavar="FILE.svg", help="Draw the roofline with every cell in it.")
    ] = "",
    directory: setup.Directory = "",
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
    from pronghorn.bench.peers import peers
    from pronghorn.bench.picture import roofline
    from pronghorn.bench.record import Record
    from pronghorn.bench.report import tell

    cells = plan(quick, only)
    setup.writable(json_file, plot)
    what = setup.subject(model, shape, use, against, precision, peers_folder, directory)
    probe = Probe(threads)
    others = peers(what.peers, what.place, what.precision, probe.threads, what.made, what.environments)
    launches = [ours(str(what.place), what.use, probe.threads, what.home), *others]
    record = Record(
        machine(), what.name, tuple(what.use), what.precision, probe.threads, probe.round_trip()
    )  # fmt: skip
    starts = 1 if profile or (only and "start" not in only) else 2 if quick else 4
    with setup.telling(
        lambda: tell(record),
        (json_file, lambda: json.dumps(record.data())),
        (plot, lambda: roofline(record)),
    ):
        _measure(record, probe, launches, cells, rounds or (3 if quick else 5), starts, profile)
    return 0


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

    with setup.bars() as tick, Race(launches, probe, record, rounds, tick) as race:
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
