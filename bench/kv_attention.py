"""What stored keys and values take, and how fast a new token's attention reads them, by method.

    python bench/kv_attention.py [--rows 4096 32768] [--method kvfmt.bf16 kvfmt.int8 quest:tokens=@16 ...]
                                 [--shape 14/2/64] [--layers 24] [--threads 2] [--rounds 9] [--json]

The model is attention and nothing else to speak of (16 wide), of the shape heads/KV heads/head size; its
store is filled with random rows. A method is a format or a selector with its options, or several joined by
"+"; @16 stands for a sixteenth of the rows. *bytes a row*: of all layers, from the store's arenas, with
scales, index and padding; *held*: the share of the first method's; *read*: bytes that attention read,
likewise. *ms*: one token's step after so many rows, median of the rounds, the best of three calls in each;
*faster*: than the first in the same round, median and range. All methods are measured in turn in every
round.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from typing import Any

import ml_dtypes
import numpy as np
from _attention import attention
from _report import machine, said, table

from pronghorn.compose import compose
from pronghorn.kv.store import Store
from pronghorn.ops.ref import Ops
from pronghorn.run.native import NativeRunner
from pronghorn.types import Rows

METHODS = (
    "kvfmt.bf16", "kvfmt.int8", "kvfmt.fp8", "kvfmt.int4", "kvfmt.int4:keys=channel", "kivi",
    "kivi:bits=4", "turbo", "zipcache", "gear", "gear:bits=2", "think", "quest:tokens=@16",
    "quest:tokens=@16,dense_layers=0",
    "double-sparsity:tokens=@16",
    "tidal:tokens=@16", "sentence-kv:tokens=@16", "squeezed:tokens=@16", "recycled:tokens=@16,full_below=-1",
    "tokenselect:tokens=@16,start=16,recent=16", "lserve:tokens=@16", "actqkv:tokens=@16",
    "quest:tokens=@16+kvfmt.int8",
)  # fmt: skip
CHUNK = 2048  # rows that are packed at a time


class Stored:
    """A runner of attention alone, over n rows."""

    def __init__(self, shape: tuple[int, int, int], layers: int, method: str, n: int, threads: int) -> None:
        _, n_kv, dim = shape
        rng, bound = np.random.default_rng(0), attention(shape, layers)
        use = re.sub(r"@(\d+)", lambda m: str(n // int(m[1])), method).split("+")
        made = compose(use)
        self.store = Store(
            Ops("float32"), layers, n_kv, dim, "bfloat16", made.kvfmt, made.select, "seq",
            list(bound.kv_ropes),
        )  # fmt: skip
        self.runner = NativeRunner(bound, self.store, threads)
        self.kv = self.store.new()
        pages = rng.normal(size=(2, CHUNK // 16, dim, 16)).astype(ml_dtypes.bfloat16)
        for first in range(0, n, CHUNK):
            self._fill(rng, pages, min(CHUNK, n - first))
        one = np.ones(1, np.int32)
        at = np.int32(n) * one
        self.rows = Rows(one, at, at + one, 0 * one, -one, one)
        self.runner.run(self.rows, [self.kv], False)  # the row that chooses where choices are kept
        self.runner.commit(0 * one, *self.store.reserve(self.kv, 1))
        self.store.extend(self.kv, at)
        self.rows = self.rows._replace(pos=at + one, span=at + 2 * one)

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
        if store.packed or not store.selector.dense:
            store.seal(self.kv)

    def seconds(self) -> float:
        times = []
        for _ in range(3):
            t = time.perf_counter()
            self.runner.run(self.rows, [self.kv], False)
            times.append(time.perf_counter() - t)
        return min(times)


def measure(args: argparse.Namespace, n: int) -> list[list[Any]]:
    shape = tuple(int(x) for x in args.shape.split("/"))
    models = {m: Stored(shape, args.layers, m, n, args.threads) for m in args.method}
    times: dict[str, list[float]] = {m: [] for m in models}
    for _ in range(args.rounds):
        for name, m in models.items():
            times[name].append(m.seconds())
    base = args.method[0]
    rows = []
    for name, m in models.items():
        size, held = m.store.held / n, m.store.held / models[base].store.held
        read = m.runner.read_bytes / models[base].runner.read_bytes
        gain = sorted(a / b for a, b in zip(times[base], times[name], strict=True))
        ms = 1e3 * statistics.median(times[name])
        rows.append([n, name, size, held, read, ms, statistics.median(gain), gain[0], gain[-1]])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument(
        "--method", nargs="+", default=list(METHODS), help="the first is what others are compared with"
    )
    parser.add_argument("--shape", default="14/2/64")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [row for n in args.rows for row in measure(args, n)]
    where = {**machine(), "threads": str(args.threads), "shape": f"{args.layers} x {args.shape}"}
    if args.json:
        print(json.dumps({"rows": rows, "machine": where}))
        return
    body = [
        [f"{n:,}", name, f"{size:.0f}", f"{100 * held:.1f} %", f"{100 * read:.1f} %", f"{ms:.2f}",
         f"{gain:.2f} ({low:.2f} to {high:.2f})"]
        for n, name, size, held, read, ms, gain, low, high in rows
    ]  # fmt: skip
    print(said(where) + "\n")
    print(table(["rows", "method", "bytes a row", "held", "read", "ms", "faster"], body))


if __name__ == "__main__":
    main()
