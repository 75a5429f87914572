"""Runs the benchmarks with fixed arguments and writes docs/results.md.

    python bench/results.py [--only NAME ...] [--print]

Takes about ten minutes on two quiet cores. `--print` writes the page to stdout and leaves the file alone;
`--only` runs some of the parts, for which `--print` is implied.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _report import machine

from pronghorn.bench.limits import BYTES, Probe

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "results.md"


@dataclass(frozen=True)
class Part:
    """One program of this folder. note: what to know when reading its table."""

    title: str
    program: str
    args: tuple[str, ...]
    note: str


PARTS = (
    Part(
        "Waiting for the first token", "start.py", ("--runs", "15"),
        "Whole processes on the bundled model, from the start of the interpreter to the first character.",
    ),
    Part(
        "Speed against the machine's limits", "speed.py", (),
        "Random weights in real shapes. *Of limit* is the shortest possible time, from bandwidth "
        "and arithmetic peaks measured just before and after every run, over the measured one "
        "([how](speed.md)). *plain* is the checkpoint's own bfloat16; int4 has groups of 32; inputs of "
        "integer products are rounded to 8 bits.",
    ),
    Part(
        "Decoding against transformers", "decode.py", ("--tokens", "256", "--rounds", "7"),
        "The bundled model in bfloat16; transformers with eager attention. All write as many tokens.",
    ),
    Part(
        "Parity in bfloat16", "parity_bf16.py", ("--tokens", "300", "--new", "64"),
        "*ours* is the native runner, *hf16* and *hf32* are transformers in bfloat16 and float32, *exact* is "
        "float64, all on the same weights. *Near ties* are positions whose two best float32 logits differ by "
        "less than 0.05. *Not near*: positions where ours is not the exact first choice by 0.05 or more, and "
        "the *worst* such gap. *Gaps* are the float32 logits of transformers' token less ours where a greedy "
        "answer parts from theirs; negative means that ours is the better choice. In Gemma the factor of the "
        "embedding is rounded to bfloat16 there and not here; in mixtures of experts a router's near tie "
        "changes the expert, and the gap with it.",
    ),
    Part(
        "What KV methods cost", "kv_cost.py", ("--rounds", "9"),
        "A random model of 8 layers, width 896, 2 KV heads of 64; methods keep or read a quarter of the "
        "rows. *Peak* is what the arenas reserved at most up to the end of the prompt: a method that drops "
        "or packs rows does so after they were stored. What methods keep is in [kv](kv.md).",
    ),
)  # fmt: skip


def run(part: Part) -> str:
    command = [sys.executable, str(HERE / part.program), *part.args]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{part.program} failed:\n{done.stdout}\n{done.stderr}")
    seconds = time.perf_counter() - start
    shown = " ".join(["python", f"bench/{part.program}", *part.args])
    out = done.stdout.strip()
    # prose and aligned lines go into a block; tables are Markdown already
    if "\n|" in out:
        head, _, tables = out.partition("\n|")
        body = f"{head.strip()}\n\n|{tables}"
    else:
        body = f"```text\n{out}\n```"
    return f"## {part.title}\n\n`{shown}` ({seconds:.0f} s)\n\n{part.note}\n\n{body}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], help="part of a program's name; repeat it")
    parser.add_argument("--print", action="store_true", help="write to stdout, not to docs/results.md")
    args = parser.parse_args()
    chosen = [p for p in PARTS if not args.only or any(o in p.program for o in args.only)]
    if not chosen:
        parser.error(f"no such part; known: {', '.join(p.program for p in PARTS)}")
    where, probe = machine(), Probe(0)
    before = probe.measure(BYTES).memory
    start = time.perf_counter()
    sections = []
    for part in chosen:
        print(f"{part.program} ...", file=sys.stderr, flush=True)
        sections.append(run(part))
    minutes = (time.perf_counter() - start) / 60
    load = os.getloadavg()[0]
    now = datetime.datetime.now(datetime.timezone.utc)
    head = (
        "# Results\n\n"
        f"Made by `make results` on {now:%Y-%m-%d}, {minutes:.0f} minutes; do not edit. The contestants of a "
        "table took turns in one run, so ratios hold better than absolute figures; where a spread is "
        "given, it is the middle value and the extremes.\n\n"
        f"- processor: {where['processor']}, {where['cores']} cores, kernels for {where['instruction set']}, "
        f"{probe.threads} threads\n"
        f"- memory: {before / 1e9:.1f} GB/s read by all threads before, "
        f"{probe.measure(BYTES).memory / 1e9:.1f} after\n"
        f"- load of the last minute: {where['load']} before, {load:.2f} after\n"
        f"- Python {platform.python_version()}, NumPy {np.__version__}\n"
    )
    page = "\n".join([head, *sections])
    if args.print or args.only:
        sys.stdout.write(page)
    else:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
