"""What stored keys and values take, and how fast a new token's attention reads them, by format.

    python bench/kv_attention.py [--rows 4096 32768] [--format bf16 int8 ...] [--shape 14/2/64] [--layers 24]
                                 [--threads 2] [--rounds 9] [--json]

The model is attention and little else (16 wide), of the shape heads/KV heads/head size; its store
is filled with random rows. Options of a format go behind it (`kivi:bits=4`). *bytes a row*: of all layers, by
the store's arenas, with scales and padding; *of bf16*: the share. *ms*: one token's step after so many rows,
median of the rounds, the best of three calls in each; *faster*: than bf16 in the same round, median, range.
All formats are measured in turn in every round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import ml_dtypes
import numpy as np
from _report import machine, said, table

from pronghorn.compose import compose
from pronghorn.kv.store import Store
from pronghorn.model.bind import bind
from pronghorn.model.tape import Param, Tape
from pronghorn.nulls import Dense
from pronghorn.ops.ref import Ops
from pronghorn.run.native import NativeRunner
from pronghorn.types import Rows

FORMATS = ("bf16", "int8", "fp8", "int4", "int4:keys=channel", "kivi", "kivi:bits=4", "turbo", "zipcache")
CHUNK = 2048  # rows that are packed at a time


class Stored:
    """A runner of attention alone, over n rows in a format."""

    def __init__(self, shape: tuple[int, int, int], layers: int, fmt: str, n: int, threads: int) -> None:
        heads, n_kv, dim = shape
        rng, tensors = np.random.default_rng(0), {}
        tape = Tape(layers, heads, n_kv, dim, 16, 1 << 20)

        def matrix(name: str, *size: int) -> Param:
            tensors[name] = (rng.normal(size=size) / 4).astype(ml_dtypes.bfloat16)
            return Param(name, size)

        x = tape.embed(matrix("embed", 16, 16), 1.0)
        for i in range(layers):
            tape.begin(i, x)
            parts = [
                tape.linear(x, matrix(f"{i}.{j}", m * dim, 16)) for j, m in enumerate((heads, n_kv, n_kv))
            ]
            y = tape.attend(*parts, scale=dim**-0.5, softcap=0.0, window=0)
            x = tape.end(tape.add(x, tape.linear(y, matrix(f"{i}.o", 16, heads * dim))))
        tape.head(x, matrix("head", 16, 16), scale=1.0, softcap=0.0)
        bound = bind(tape, tensors, ())
        name = fmt if fmt.startswith("kvfmt.") else f"kvfmt.{fmt}"
        packing = compose([name]).kvfmt
        self.store = Store(Ops("float32"), layers, n_kv, dim, "bfloat16", packing, Dense(), "seq",
                           list(bound.kv_ropes))  # fmt: skip
        self.runner = NativeRunner(bound, self.store, threads)
        self.kv = self.store.new()
        pages = rng.normal(size=(2, CHUNK // 16, dim, 16)).astype(ml_dtypes.bfloat16)
        for first in range(0, n, CHUNK):
            self._fill(pages, min(CHUNK, n - first))
        one = np.ones(1, np.int32)
        at = np.int32(n) * one
        self.rows = Rows(one, at, at + one, 0 * one, -one, one)

    def _fill(self, pages: Any, n: int) -> None:
        store, at = self.store, self.store.open_layout
        store.reserve(self.kv, n)
        blocks = self.kv.open[self.kv.n_open // 16 :]
        for i in range(store.n_layers * store.n_kv):
            k, v = np.roll(pages[:, : len(blocks)], i, axis=1)
            store.open_arena.write(blocks, at.where(0, i, 0), "bfloat16", np.ascontiguousarray(k))
            v = np.ascontiguousarray(v.transpose(0, 2, 1))
            store.open_arena.write(blocks, at.where(0, i, 1), "bfloat16", v)
        store.extend(self.kv, range(self.kv.next_pos, self.kv.next_pos + n))
        if store.packed:
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
    models = {f: Stored(shape, args.layers, f, n, args.threads) for f in args.format}
    times: dict[str, list[float]] = {f: [] for f in models}
    for _ in range(args.rounds):
        for f, m in models.items():
            times[f].append(m.seconds())
    base = args.format[0]
    rows = []
    for f, m in models.items():
        size, of = m.store.held / n, m.store.held / models[base].store.held
        gain = sorted(a / b for a, b in zip(times[base], times[f], strict=True))
        rows.append(
            [n, f, size, of, 1e3 * statistics.median(times[f]), statistics.median(gain), gain[0], gain[-1]]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument(
        "--format", nargs="+", default=list(FORMATS), help="the first is what others are compared with"
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
        [str(n), f, f"{size:.0f}", f"{100 * of:.1f} %", f"{ms:.2f}", f"{gain:.2f} ({low:.2f} to {high:.2f})"]
        for n, f, size, of, ms, gain, low, high in rows
    ]
    print(said(where) + "\n")
    print(table(["rows", "format", "bytes a row", f"of {args.format[0]}", "ms", "faster"], body))


if __name__ == "__main__":
    main()
