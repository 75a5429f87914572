"""Measures what KV methods keep and writes the tables and figures of docs/kv.md.

    python bench/kv.py [--only NAME ...] [--again] [--data FOLDER]

Runs `pronghorn bench kv` as RUNS says, all methods at four budgets, compares some with kvpress at equal
budgets on the same tasks (`python bench/peers/build.py kvpress` first), and runs kv_speed.py as SPEED says,
for which the machine should be quiet. Every run leaves a record in a folder
(--to), and what is in it is not measured again unless `--again` says so; tables without a record stay as they
are. Figures need matplotlib, which the extra `bench` installs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _kvpress import compare
from _report import into, said
from kv_speed import shown

from pronghorn.bench.kv import Record, Result, record_of
from pronghorn.bench.kv_methods import PLAIN
from pronghorn.bench.kv_report import pages
from pronghorn.bench.shapes import cache

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "kv.md"
CONTROL = "random"
DRAWN = "lookup"
TEXTS = 12  # with kvpress, which takes a second for each
MODEL = "tests/models/lookup"
RUNS: dict[str, tuple[str, ...]] = {
    "lookup": (MODEL, "--items", "16", "--threads", "1"),
    "tiny": (
        "pronghorn-tiny", "--items", "16", "--length", "384", "--threads", "1", "--budget", "4", "--method",
        "random", "--method", "streaming-llm", "--method", "h2o", "--method", "snapkv", "--method",
        "kvfmt.int8", "--task", "needle", "--task", "registry", "--task", "gsm8k", "--task", "wikitext",
    ),
}  # fmt: skip
WHOLE = (
    "--rows", "1024", "4096", "32768", "--method", "kvfmt.bf16", "kvfmt.int8", "kvfmt.int4",
    "quest:tokens=@16", "lserve:tokens=@16", "knorm:budget=@8", "snapkv:budget=@8",
    "adakv:policy=snapkv:budget=@8", "knorm:budget=@8+kvfmt.int4",
)  # fmt: skip
SPEED: dict[str, tuple[str, ...]] = {
    "speed-attention": ("--rows", "512", "1024", "2048", "4096", "32768"),
    "speed-model": ("--model", "qwen2.5-0.5b", "--use", "weight.int8", *WHOLE),
    "speed-model-int4": ("--model", "qwen2.5-0.5b", "--use", "weight.int4", *WHOLE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], choices=sorted([*RUNS, *SPEED, "kvpress"]))
    parser.add_argument("--again", action="store_true", help="also what has a record")
    parser.add_argument("--data", default="", help="folder of the data; else ../shared/data")
    parser.add_argument("--to", type=Path, default=cache() / "kv", help="folder of the records")
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    made: dict[str, str] = {}
    for name, options in RUNS.items():
        file = args.to / f"{name}.json"
        if not args.only or name in args.only:
            more = ["--data", args.data] if args.data else []
            measure([*options, *more], file, args.again)
        if file.exists():
            record = record_of(json.loads(file.read_text(encoding="utf-8")))
            made |= {f"{name} {part}": f"\n{text}\n" for part, text in pages(record).items()}
            shown = f"`pronghorn bench kv {' '.join(options)}`"
            made[f"{name} plain"] = f"\n{shown}\n{made[f'{name} plain']}"
            if name == DRAWN:
                draw(record, name)
    peers = args.to / "kvpress.json"
    if not args.only or "kvpress" in args.only or peers.exists():  # what has a record takes no time
        made["kvpress"] = f"\n{compare(str(ROOT / MODEL), 1024, TEXTS, peers)}\n"
    for name, options in SPEED.items():
        if not args.only or name in args.only:
            clock(options, args.to / f"{name}.json", args.again)
        if (args.to / f"{name}.json").exists():
            made[name] = timed(options, args.to / f"{name}.json")
    into(PAGE, made)


def measure(options: list[str], file: Path, again: bool) -> None:
    """What is missing in the file."""
    if again:
        file.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "pronghorn.cli.main", "bench", "kv", *options, "--json", str(file), "--resume",
    ]  # fmt: skip
    print(" ".join(command[2:]), file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    if done.returncode:
        raise SystemExit(f"it ended with status {done.returncode}; what it measured is in {file}")


def clock(options: Sequence[str], file: Path, again: bool) -> None:
    """As kv_speed.py has it, unless the file is there."""
    if file.exists() and not again:
        return
    command = [sys.executable, str(ROOT / "bench" / "kv_speed.py"), *options, "--json"]
    print(" ".join(command[1:]), file=sys.stderr, flush=True)
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise SystemExit(f"it ended with status {done.returncode}")
    file.write_bytes(done.stdout)


def timed(options: Sequence[str], file: Path) -> str:
    record = json.loads(file.read_text(encoding="utf-8"))
    where = said(record["machine"])
    return f"\n`python bench/kv_speed.py {' '.join(options)}`\n\n{shown(record['rows'])}\n\n_{where}_\n"


# ------------------------------------------------------------------------------- figures


def draw(record: Record, name: str) -> None:
    """docs/kv-NAME-held.svg and docs/kv-NAME-read.svg: scores against bytes, a panel for each task."""
    try:
        import matplotlib
    except ImportError:
        print("no figures: matplotlib is not installed", file=sys.stderr)
        return
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "kv", "font.size": 8, "svg.fonttype": "none"})
    from matplotlib import pyplot

    for what, of in (("held", record.held), ("read", record.read)):
        tasks = [t for t in record.tasks if any(of(r) > 0 for r in record.results if r.task == t)]
        columns = 3
        rows = -(-(len(tasks) + 1) // columns)
        figure, panels = pyplot.subplots(rows, columns, figsize=(10, 2.6 * rows), squeeze=False)
        handles: dict[str, Any] = {}
        for panel, task in zip(panels.flat, tasks, strict=False):
            for i, method in enumerate(sorted({r.method for r in record.results} - {PLAIN})):
                found = [r for r in record.results if (r.task, r.method) == (task, method)]
                points = sorted((of(r), _height(r)) for r in found if of(r) > 0)
                if points:
                    handles[method] = line(panel, points, method, i)
            plain = record.find(task)
            if plain:
                panel.axhline(_height(plain), color="0.6", linewidth=0.8, linestyle=":")
            panel.set_xscale("log", base=2)
            if plain and plain.perplexity:
                panel.set_yscale("log")
            panel.set_title(task)
            panel.set_xlabel(f"bytes {what}, of plain")
            panel.set_ylabel("perplexity" if plain and plain.perplexity else "right, %")
        for panel in panels.flat[len(tasks) :]:
            panel.axis("off")
        panels.flat[-1].legend(handles.values(), handles.keys(), ncols=2, loc="center", fontsize=6)
        figure.tight_layout()
        figure.savefig(PAGE.with_name(f"kv-{name}-{what}.svg"), metadata={"Date": None})
        pyplot.close(figure)


def _height(r: Result) -> float:
    return r.figure if r.perplexity else 100 * r.figure


def line(panel: Any, points: list[tuple[float, float]], method: str, number: int) -> Any:
    """The control is black; ten colours and three styles tell the others apart."""
    style = {"color": "black", "linewidth": 2.0} if method == CONTROL else {
        "color": f"C{number % 10}", "linestyle": ("-", "--", "-.")[number // 10 % 3], "linewidth": 1.0,
    }  # fmt: skip
    (drawn,) = panel.plot(*zip(*points, strict=True), marker="o", markersize=2.5, **style)
    return drawn


if __name__ == "__main__":
    main()
