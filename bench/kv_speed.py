"""What stored keys and values take, and how fast a new token reads them, by method.

    python bench/kv_speed.py [--rows 4096 32768] [--method kvfmt.bf16 kvfmt.int8 quest:tokens=@16 ...]
                             [--shape 14/2/64 --layers 24 | --model qwen2.5-0.5b --use weight.int8]
                             [--threads 2] [--rounds 9] [--json]

The model is attention and nothing else to speak of (16 wide), of the shape heads/KV heads/head size, or with
--model a whole one of random weights, packed as --use says. Its store is filled with random rows, which are
sealed as those of a prompt, and a policy drops what it drops at the end of one. A method is a policy, a
format or a selector with its options, or several joined by "+"; @16 stands for a sixteenth of the rows.
*bytes a row*: of all layers, as a receipt says it: pages with scales, index and padding, and the tables
that say where they are and which positions they have; *held*: the share of the first method's; *process*:
what the process grew by, of what the store says it holds, once as many rows had come and gone before and
the C library gave back what was freed; *read*: bytes that attention read, likewise. *ms*: one token's step
after so many rows, median of the rounds, the best of three calls in each; *faster*: than the first in the
same round, median and range. All methods are measured in turn in every round. With several lengths, *even
from* is the smallest from which on a method's median is no slower than the first's.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from _attention import attention
from _report import machine, said, table

from pronghorn.bench.shapes import kept
from pronghorn.compose import compose
from pronghorn.kv.store import Store
from pronghorn.model.bind import Bound, bind
from pronghorn.opening import load
from pronghorn.ops.ref import Ops
from pronghorn.run.native import NativeRunner
from pronghorn.types import Rows

METHODS = (
    "kvfmt.bf16", "kvfmt.int8", "kvfmt.fp8", "kvfmt.int4", "kvfmt.int4:keys=channel", "kivi",
    "kivi:bits=4", "turbo", "zipcache", "zipcache:bits=2,salient=10", "mikv", "gear:bits=2", "gear", "think",
    "quest:tokens=@16",
    "quest:tokens=@16,dense_layers=0",
    "double-sparsity:tokens=@16", "a2ats:tokens=@16",
    "tidal:tokens=@16", "sentence-kv:tokens=@16", "squeezed:tokens=@16", "recycled:tokens=@16,full_below=-1",
    "tokenselect:tokens=@16,start=16,recent=16", "lserve:tokens=@16", "actqkv:tokens=@16",
    "quest:tokens=@16+kvfmt.int8", "knorm:budget=@8", "snapkv:budget=@8", "adakv:policy=snapkv:budget=@8",
    "knorm:budget=@8+kvfmt.int4",
)  # fmt: skip
LIBC = ctypes.CDLL(None)
CHUNK = 2048  # rows that are packed at a time
COLUMNS = ("rows", "method", "bytes a row", "held", "process", "read", "ms", "faster")


def resident() -> int:
    """Bytes of this process that are in memory and in use."""
    gc.collect()
    if hasattr(LIBC, "malloc_trim"):  # freed memory that the C library keeps is nobody's
        LIBC.malloc_trim(0)
    text = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    return next(int(x.split()[1]) * 1024 for x in text.splitlines() if x.startswith("Rss:"))


class Stored:
    """A runner over n rows. `grown`: bytes that the process grew by when they were stored."""

    def __init__(
        self, bound: Bound, method: str, n: int, threads: int, beside: Sequence[NativeRunner]
    ) -> None:
        made = compose(re.sub(r"@(\d+)", lambda m: str(n // int(m[1])), method).split("+"))
        self.policy = made.kv
        self.store = Store(
            Ops("float32"), bound.n_layers, bound.n_kv, bound.head_dim, "bfloat16", made.kvfmt, made.select,
            made.rows, list(bound.kv_ropes),
        )  # fmt: skip
        self.runner = NativeRunner(bound, self.store, threads, beside)
        self.store.look = self.runner.look
        self.kv = self.store.new()
        self._store(n)
        self.kv.free()
        before = resident()
        self._store(n)
        self.grown, self.held = resident() - before, self.store.bytes_of(self.kv)
        one = np.ones(1, np.int32)
        at = np.int32(n) * one
        self.rows = Rows(one, at, at + one, 0 * one, -one, one)
        self.runner.run(self.rows, [self.kv], False)  # the row that chooses where choices are kept
        self.runner.commit(0 * one, *self.store.reserve(self.kv, 1))
        self.store.extend(self.kv, at)
        self.rows = self.rows._replace(pos=at + one, span=at + 2 * one)

    def _store(self, n: int) -> None:
        rng = np.random.default_rng(0)
        pages = rng.normal(size=(2, CHUNK // 16, self.store.head_dim, 16)).astype(ml_dtypes.bfloat16)
        for first in range(0, n, CHUNK):
            self._fill(rng, pages, min(CHUNK, n - first))
        self._drop(rng, n)

    def _fill(self, rng: Any, pages: Any, n: int) -> None:
        store, at = self.store, self.store.open_layout
        store.reserve(self.kv, n)
        blocks = self.kv.open[self.kv.n_open // 16 :]
        for i in range(store.n_layers * store.n_kv):
            k, v = pages[:, rng.permutation(len(blocks))] * np.float32(rng.choice([-1, 1])).astype(
                pages.dtype
            )
            store.open_arena.write(blocks, at.where(0, i, 0), "bfloat16", np.ascontiguousarray(k))
            v = np.ascontiguousarray(v.transpose(0, 2, 1))
            store.open_arena.write(blocks, at.where(0, i, 1), "bfloat16", v)
        store.extend(self.kv, range(self.kv.next_pos, self.kv.next_pos + n))
        if store.packed or not store.selector.dense or self.policy.traits.drops:
            store.seal(self.kv)

    def _drop(self, rng: Any, n: int) -> None:
        """What the policy does at the end of a prompt of n tokens, shown random queries of the last ones."""
        if not self.policy.traits.drops:
            return
        bound, seen = self.runner.bound, np.arange(n - 64, n, dtype=np.int32)
        q = rng.normal(size=(bound.n_layers, bound.n_heads, len(seen), bound.head_dim)).astype(np.float32)
        view = self.store.view(self.kv, n, 0, [0] * n)
        self.store.seal(self.kv, self.policy.plan(view, {"q": q, "q_pos": seen, "q_at": seen}))

    def seconds(self) -> float:
        times = []
        for _ in range(3):
            t = time.perf_counter()
            self.runner.run(self.rows, [self.kv], False)
            times.append(time.perf_counter() - t)
        return min(times)


def measure(args: argparse.Namespace, bound: Bound, n: int) -> list[list[Any]]:
    """A row of figures for each method, in the order of COLUMNS; *faster* as three numbers."""
    models: dict[str, Stored] = {}
    for method in args.method:
        beside = [m.runner for m in models.values()][:1]
        models[method] = Stored(bound, method, n, args.threads, beside)
    times: dict[str, list[float]] = {m: [] for m in models}
    for _ in range(args.rounds):
        for name, m in models.items():
            times[name].append(m.seconds())
    base = models[args.method[0]]
    rows = []
    for name, m in models.items():
        gain = sorted(a / b for a, b in zip(times[args.method[0]], times[name], strict=True))
        read = m.runner.read_bytes / base.runner.read_bytes
        ms = 1e3 * statistics.median(times[name])
        faster = (statistics.median(gain), gain[0], gain[-1])
        rows.append([n, name, m.held / n, m.held / base.held, m.grown / m.held, read, ms, faster])
    return rows


def even(rows: Sequence[Sequence[Any]], method: str) -> str:
    """The smallest length from which on the method's median is not below the first's."""
    found = sorted((row[0], row[-1][0]) for row in rows if row[1] == method)
    slow = [i for i, (_, gain) in enumerate(found) if gain < 1]
    first = slow[-1] + 1 if slow else 0
    return f"{found[first][0]:,}" if first < len(found) else "–"


def shown(rows: Sequence[Sequence[Any]]) -> str:
    """All figures of the longest, and how much faster at every length."""
    lengths, methods = sorted({row[0] for row in rows}), list(dict.fromkeys(row[1] for row in rows))
    body = [
        [name, f"{size:.0f}", f"{100 * held:.1f} %", f"{grown:.3f}", f"{100 * read:.1f} %", f"{ms:.2f}",
         f"{gain:.2f} ({low:.2f} to {high:.2f})"]
        for n, name, size, held, grown, read, ms, (gain, low, high) in rows if n == lengths[-1]
    ]  # fmt: skip
    out = f"Behind {lengths[-1]:,} rows:\n\n" + table(list(COLUMNS[1:]), body)
    if len(lengths) > 1:
        gains = {(row[0], row[1]): f"{row[-1][0]:.2f}" for row in rows}
        process = {m: max(abs(row[4] - 1) for row in rows if row[1] == m) for m in methods}
        body = [
            [m, *(gains[n, m] for n in lengths), even(rows, m), f"{100 * process[m]:.1f} %"] for m in methods
        ]
        heads = ["faster behind", *(f"{n:,}" for n in lengths), "even from", "process, off by at most"]
        out += "\n\n" + table(heads, body)
    return out


def model(args: argparse.Namespace) -> Bound:
    if not args.model:
        return attention(tuple(int(x) for x in args.shape.split("/")), args.layers)
    folder = kept(args.model)
    opened = load(str(folder))
    return bind(opened.tape, opened.checkpoint.tensors, compose(args.use).weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument(
        "--method", nargs="+", default=list(METHODS), help="the first is what others are compared with"
    )
    parser.add_argument("--shape", default="14/2/64")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--model", default="", help="a shape that `pronghorn bench speed --shape` knows")
    parser.add_argument("--use", action="append", default=[], help="how the model's weights are packed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    bound = model(args)
    rows = [row for n in args.rows for row in measure(args, bound, n)]
    what = " ".join([args.model, *args.use]) if args.model else f"{args.layers} x {args.shape}"
    where = {**machine(), "threads": str(args.threads), "shape": what}
    if args.json:
        print(json.dumps({"rows": rows, "machine": where}))
        return
    print(said(where) + "\n")
    print(shown(rows))


if __name__ == "__main__":
    main()
