"""What a step costs besides its arithmetic: a random Llama of many layers whose matrices are tiny.

    python bench/overhead.py [--layers 30] [--rows 1 4 16] [--threads 1 2] [--rounds 9] [--json]
                             [--width 64 --hidden 128 --dtype float32] [--against OTHER_CHECKOUT ...]

Only the native step is timed, not the Python around it: one sequence, a short context, rows that hang on
one another like a draft. Tiny matrices lie in the first-level cache, so what remains is synchronisation
of the threads and the bookkeeping of the phases. --against measures other checkouts of this project, with
their extensions built, in turns with this one: a machine whose cores move apart, or that others use,
slows them alike. Every checkout runs in a process of its own, which rests while another is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _report import machine, said, spread, table

ROOT = Path(__file__).resolve().parents[1]


class Step:
    """One step of the random model, ready to be repeated. Nothing is committed between repeats."""

    def __init__(self, shape: dict[str, Any], n_rows: int, threads: int) -> None:
        import ml_dtypes
        import numpy as np

        from pronghorn.kv.store import Store
        from pronghorn.model.bind import bind
        from pronghorn.model.rope import Rope
        from pronghorn.model.tape import Param, Tape
        from pronghorn.nulls import Dense, ExactKV
        from pronghorn.ops.ref import Ops
        from pronghorn.run.native import NativeRunner

        rng = np.random.default_rng(0)
        width, hidden, n_vocab, dim = shape["width"], shape["hidden"], shape["vocab"], shape["dim"]
        q, kv = shape["heads"] * dim, shape["kv"] * dim
        tensors: dict[str, Any] = {}
        tape = Tape(shape["layers"], shape["heads"], shape["kv"], dim, n_vocab, 4096)

        def matrix(name: str, *size: int) -> Param:
            w = rng.standard_normal(size, np.float32) / np.float32(np.sqrt(size[-1]))
            tensors[name] = w.astype(ml_dtypes.bfloat16) if shape["dtype"] == "bfloat16" else w
            return Param(name, size)

        def normed(x: int, name: str) -> int:
            tensors[name] = np.ones(width, np.float32)
            return tape.norm(x, Param(name, (width,)), 1e-5, group=width)

        rope = tape.rope_table(Rope(dim, 10000.0))
        embedding = matrix("embed", n_vocab, width)
        x = tape.embed(embedding, 1.0)
        for i in range(shape["layers"]):
            tape.begin(i, x)
            h = normed(x, f"{i}.a")
            parts = [
                tape.linear(h, matrix(f"{i}.{n}", m, width)) for n, m in (("q", q), ("k", kv), ("v", kv))
            ]
            turned = [tape.rope(parts[0], rope, shape["heads"]), tape.rope(parts[1], rope, shape["kv"])]
            a = tape.attend(*turned, parts[2], scale=dim**-0.5)
            x = tape.add(x, tape.linear(a, matrix(f"{i}.o", width, q)))
            h = normed(x, f"{i}.m")
            gate = tape.linear(h, matrix(f"{i}.g", hidden, width))
            up = tape.linear(h, matrix(f"{i}.u", hidden, width))
            y = tape.linear(tape.glu(gate, up, "silu"), matrix(f"{i}.d", width, hidden))
            x = tape.end(tape.add(x, y))
        tape.head(normed(x, "norm"), embedding, scale=1.0)
        bound = bind(tape, tensors, ())
        kv_dtype = "bfloat16" if shape["dtype"] == "bfloat16" else "float32"
        store = Store(Ops("float32"), bound.n_layers, bound.n_kv, bound.head_dim, kv_dtype, ExactKV(),
                      Dense(), "seq", list(bound.kv_ropes))  # fmt: skip
        self.exe = NativeRunner(bound, store, threads).exe
        ids = np.arange(n_rows, dtype=np.int32)
        self.arrays = (ids, ids, ids + 1, np.zeros(n_rows, np.int32), ids - 1, np.ones(n_rows, np.int32))
        self.kvs = [store.new()]
        self.logits = np.empty((n_rows, n_vocab), np.float32)

    def run(self) -> None:
        self.exe.run(*self.arrays, self.kvs, [], [], self.logits, [], [], [])

    def seconds(self, least: float) -> float:
        """Of one step: the middle of the fastest quarter of those that fit into `least` seconds. What
        else runs on the machine slows the others."""
        self.run()
        taken, end, now = [], time.perf_counter() + least, 0.0
        while now < end:
            start = time.perf_counter()
            self.run()
            now = time.perf_counter()
            taken.append(now - start)
        return sorted(taken)[len(taken) // 8]


def serve(shape: dict[str, Any]) -> None:
    """Answers lines "rows threads seconds" with seconds per step."""
    steps: dict[tuple[int, int], Step] = {}
    for line in sys.stdin:
        n, threads, least = line.split()
        key = int(n), int(threads)
        if key not in steps:
            steps[key] = Step(shape, *key)
        print(steps[key].seconds(float(least)), flush=True)


class Checkout:
    """A process that measures with the package of another folder."""

    def __init__(self, folder: Path, shape: dict[str, Any]) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", json.dumps(shape)]
        env = {**os.environ, "PYTHONPATH": str(folder)}
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def ask(self, n_rows: int, threads: int, least: float) -> float:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{n_rows} {threads} {least}\n")
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("a measuring process ended early")
        return float(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv", type=int, default=2)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=256)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.1, help="of one measurement")
    parser.add_argument("--against", type=Path, nargs="*", default=[])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(json.loads(args.serve))
        return
    names = ("layers", "width", "hidden", "heads", "kv", "dim", "vocab", "dtype")
    shape = {name: getattr(args, name) for name in names}
    folders = [ROOT, *args.against]
    checkouts = [Checkout(folder, shape) for folder in folders]
    rows, result = [], []
    for n in args.rows:
        for threads in args.threads:
            taken: list[list[float]] = [[] for _ in checkouts]
            for i in range(args.rounds + 1):
                for c, own in zip(checkouts, taken, strict=True):
                    seconds = c.ask(n, threads, args.seconds)
                    if i:
                        own.append(seconds)
            for folder, own in zip(folders, taken, strict=True):
                s = spread([1e9 * t / args.layers for t in own])
                ratio = spread([b / a for a, b in zip(taken[0], own, strict=True)])
                result.append({"checkout": str(folder), "rows": n, "threads": threads,
                               "ns_per_layer": asdict(s), "against_this": asdict(ratio)})  # fmt: skip
                spans = f"{s.low:.0f} to {s.high:.0f}", f"{ratio.low:.2f} to {ratio.high:.2f}"
                rows.append([folder.name, str(n), str(threads), f"{s.median:.0f}", spans[0],
                             f"{ratio.median:.2f}", spans[1]])  # fmt: skip
    if args.json:
        print(json.dumps({"shape": shape, "machine": machine(), "results": result}))
        return
    print(f"{said(machine())}; " + ", ".join(f"{k} {v}" for k, v in shape.items()))
    head = ["checkout", "rows", "threads", "ns per layer", "range", "against this", "range"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
