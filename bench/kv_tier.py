"""What stored rows take of memory, and how fast they are read, when those not chosen lately lie on a disk.

    python bench/kv_tier.py [--rows 32768] [--select quest:tokens=@16,dense_layers=0] [--of 1 4 8 16]
                            [--shape 14/2/64 --layers 24 | --model qwen2.5-0.5b --use weight.int8]
                            [--folder /tmp] [--threads 2] [--steps 32] [--rounds 3] [--json]

The model and its rows are those of kv_speed.py, sealed as those of a prompt; a step chooses @16, a
sixteenth, of them. --of: the share of rows' bytes that may stay in memory, 1 without a tier. Each runs in a
process of its own, which says at the end what it grew by, as the kernel counts: *anon* is its own memory,
*file* what it has mapped of the file; *cached*: what the kernel has of the file in memory, mapped or not,
of all its pages. Keys are random, so two tokens choose about as many pages in common as by chance, which no
text does:

    same     the same token in every step: it chooses the same pages
    turns    another token in every eighth step
    new      another token in every step: most of its pages are not in memory, the worst case

*missed*: pages a step that nobody had asked the disk for when they were read, from the process's major
faults; *read*: KiB a step that the disk gave, where the system tells; *ms*: the median step, *mean* the mean
one, *tokens/s* by it, and *cpu* the processors' time in it, which other work on the machine changes less.
All run in turn, `--rounds` times: medians of the rounds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _report import machine, said, table
from kv_speed import LIBC, Stored, model

from pronghorn.kv.paged import UNIT, FileArena
from pronghorn.methods.reside.pages import Pages
from pronghorn.model.bind import Bound
from pronghorn.nulls import AllResident

EVERY = {"same": 0, "turns": 8, "new": 1}
GIB = 1 << 30


def memory() -> dict[str, int]:
    """Resident bytes of this process: in all, its own, of files."""
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return {
        k: int(v) << 10 for k, v in re.findall(r"^Rss(\w+):\s+(\d+) kB", text, re.M) if k in ("Anon", "File")
    }


def from_disk() -> int:
    """Bytes that disks gave this process so far, 0 where the system does not tell."""
    path = Path("/proc/self/io")
    found = re.search(r"^read_bytes: (\d+)", path.read_text() if path.exists() else "", re.M)
    return int(found[1]) if found else 0


def cached(arena: FileArena) -> int:
    """Bytes of the arena's file that the kernel has in memory."""
    total = 0
    for slab in arena.slabs:
        if slab is not None:
            marks = (ctypes.c_ubyte * (slab.nbytes // UNIT))()
            if LIBC.mincore(ctypes.c_void_p(slab.ctypes.data), ctypes.c_size_t(slab.nbytes), marks):
                raise OSError("mincore")
            total += int((np.frombuffer(marks, np.uint8) & 1).sum()) * UNIT
    return total


class Tiered(Stored):
    """Rows behind which a token comes, of which one part in `of` stays in memory."""

    def __init__(self, bound: Bound, method: str, n: int, threads: int, folder: str, of: int) -> None:
        size = 2 * n * bound.n_layers * bound.n_kv * bound.head_dim * 2  # bfloat16
        self.reside: Any = Pages(folder, size / of / GIB) if of > 1 else AllResident()
        self.pages: Any = None
        self.before: dict[str, int] = {}
        super().__init__(bound, method, n, threads, ())
        self.pages.read_whole(self.kv)  # a first step was run, and nobody told which pages it read
        self.pages.settle()

    def _store(self, n: int) -> None:
        self.pages = self.pages or self.reside.pages(self.store)
        self.before = self.before or memory()
        super()._store(n)

    def _fill(self, rng: Any, pages: Any, n: int) -> None:
        super()._fill(rng, pages, n)
        self.pages.settle()

    def step(self, token: int) -> float:
        """Seconds of one, what is given back included."""
        rows = self.rows._replace(ids=np.full(1, token, np.int32))
        start = time.perf_counter()
        self.runner.run(rows, [self.kv], False)
        self.pages.used([self.kv], self.runner.seen)
        self.pages.settle()
        return time.perf_counter() - start


def measure(args: argparse.Namespace, of: int) -> dict[str, Any]:
    bound, n = model(args), args.rows
    method = re.sub(r"@(\d+)", lambda m: str(n // int(m[1])), args.select)
    stored = Tiered(bound, method, n, args.threads, args.folder, of)
    out: dict[str, Any] = {"of": of, "held": stored.store.held, "modes": {}}
    rng = np.random.default_rng(1)
    for mode, every in EVERY.items():
        token = 1
        for _ in range(4):
            stored.step(token)
        before, had, times = resource.getrusage(resource.RUSAGE_SELF), from_disk(), []
        for i in range(args.steps):
            if every and i % every == 0:
                token = int(rng.integers(bound.n_vocab))
            times.append(stored.step(token))
        after, kib = resource.getrusage(resource.RUSAGE_SELF), (from_disk() - had) / args.steps / 1024
        missed = (after.ru_majflt - before.ru_majflt) / args.steps
        cpu = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / args.steps
        grown = {k: v - stored.before[k] for k, v in memory().items()}
        out["modes"][mode] = {
            "ms": 1e3 * statistics.median(times), "mean": 1e3 * statistics.mean(times), "missed": missed,
            "read": kib, "cpu": 1e3 * cpu, **grown,
            "cached": cached(stored.store.sealed_arena) if of > 1 else 0,
        }  # fmt: skip
    return out


def together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of the rounds."""
    modes = {
        mode: {k: statistics.median(r["modes"][mode][k] for r in runs) for k in runs[0]["modes"][mode]}
        for mode in EVERY
    }
    return {**runs[0], "modes": modes}


def shown(found: list[dict[str, Any]]) -> str:
    body = [
        ["all" if f["of"] == 1 else f"1/{f['of']}", mode,
         *(f"{m[k] / (1 << 20):.0f}" for k in ("Anon", "File", "cached")),
         f"{m['missed']:.0f}", f"{m['read']:.0f}", f"{m['ms']:.2f}", f"{m['mean']:.2f}",
         f"{1e3 / m['mean']:.1f}", f"{m['cpu']:.1f}"]
        for f in found for mode, m in f["modes"].items()
    ]  # fmt: skip
    heads = [
        "in memory",
        "tokens",
        "anon, MiB",
        "file, MiB",
        "cached, MiB",
        "missed",
        "read, KiB",
        "ms",
        "mean",
        "tokens/s",
        "cpu",
    ]
    return table(heads, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32768)
    parser.add_argument("--select", default="quest:tokens=@16,dense_layers=0")
    parser.add_argument("--of", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--shape", default="14/2/64")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--model", default="", help="a shape that `pronghorn bench speed --shape` knows")
    parser.add_argument("--use", action="append", default=[], help="how the model's weights are packed")
    parser.add_argument("--folder", default="/tmp")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arm", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(measure(args, args.arm)))
        return
    runs: dict[int, list[dict[str, Any]]] = {of: [] for of in args.of}
    for _ in range(args.rounds):
        for of, own in runs.items():
            command = [sys.executable, *sys.argv, "--arm", str(of)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            own.append(json.loads(done.stdout.splitlines()[-1]))
    found = [together(own) for own in runs.values()]
    what = " ".join([args.model, *args.use]) if args.model else f"{args.layers} x {args.shape}"
    where = {**machine(), "threads": str(args.threads), "shape": what, "page": str(mmap.PAGESIZE)}
    if args.json:
        print(json.dumps({"found": found, "machine": where}))
        return
    print(said(where) + "\n")
    print(f"Behind {args.rows:,} rows, {args.select}:\n\n" + shown(found))


if __name__ == "__main__":
    main()
