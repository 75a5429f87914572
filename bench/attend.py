"""Attention alone: prefill and decode, as a share of what the machine allows in the same minutes.

    python bench/attend.py [--threads 2] [--kv bfloat16] [--against OLD.so] [--repeats 5] [--only TEXT ...]
                           [--json]

The model has attention and nothing else to speak of: 16 wide, so its projections cost little, and time
that they and the call take counts as attention's. Prefill: one step of n tokens. Decode: one token after
so many. Layers are as many as it takes for KV that no cache holds (at short contexts: 24, and a cache
does hold them). Limits are those of `pronghorn.bench.limits`, measured between all measurements, which
alternate; all figures are medians.

GFLOP/s of prefill count four per query, visible key and channel; GB/s of decode are stored keys and
values by the time. `--against` measures an extension built from other sources beside this one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _report import machine, said, table

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {"14/2/64": (14, 2, 64), "32/8/64": (32, 8, 64), "9/3/64": (9, 3, 64)}
PREFILL = (512, 2048, 8192)
DECODE = (128, 2048, 8192, 32768)
CACHE = 96 << 20  # bytes that no cache holds
SIZE = {"float32": 4, "bfloat16": 2, "int8": 1}


def layers_for(heads: int, n_kv: int, dim: int, what: str, n: int, kv: str) -> int:
    if what == "prefill":
        return 2
    return max(1, min(24, -(-CACHE // (2 * n_kv * dim * SIZE[kv] * n))))


class Model:
    """Attention of some layers, with n tokens in the store."""

    def __init__(self, shape: tuple[int, int, int], layers: int, kv: str, threads: int, n: int) -> None:
        import numpy as np
        from _attention import attention

        from pronghorn.kv.store import Store
        from pronghorn.methods.kvfmt.int8 import Int8
        from pronghorn.nulls import Dense, ExactKV
        from pronghorn.ops.ref import Ops
        from pronghorn.run.native import NativeRunner

        _, n_kv, dim = shape
        bound = attention(shape, layers)
        dtype, fmt = ("bfloat16", Int8()) if kv == "int8" else (kv, ExactKV())
        store = Store(Ops("float32"), layers, n_kv, dim, dtype, fmt, Dense(), "seq", list(bound.kv_ropes))
        self.runner = NativeRunner(bound, store, threads)
        self.kv, self.np = store.new(), np
        while self.kv.next_pos < n:
            at = min(512, n - self.kv.next_pos)
            self.step(at)
            row = np.arange(at, dtype=np.int32)
            self.runner.commit(row, *store.reserve(self.kv, at))
            store.extend(self.kv, self.kv.next_pos + row)
        if kv == "int8" and n:
            store.seal(self.kv)

    def step(self, n: int) -> None:
        from pronghorn.types import Rows

        np = self.np
        at, zero = np.arange(n, dtype=np.int32), np.zeros(n, np.int32)
        want = zero.copy()
        want[-1] = 1
        pos = at + np.int32(self.kv.next_pos)
        self.runner.run(Rows(at % 16, pos, pos + 1, zero, at - 1, want), [self.kv], False)


def work(path: str) -> None:
    """Builds models and times steps with the extension at `path`, as lines of JSON say."""
    sys.path[:0] = [str(ROOT)]
    if path:
        import pronghorn.ops.cpu

        spec = importlib.util.spec_from_file_location("pronghorn.ops.cpu._native", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["pronghorn.ops.cpu._native"] = module
        spec.loader.exec_module(module)
        pronghorn.ops.cpu._native = module  # type: ignore[attr-defined]
    model: Any = None
    for line in sys.stdin:
        ask = json.loads(line)
        if "build" in ask:
            model = None
            model = Model(*ask["build"])
            print(0, flush=True)
            continue
        times = []
        for _ in range(ask["times"]):
            t = time.perf_counter()
            model.step(ask["rows"])
            times.append(time.perf_counter() - t)
        print(min(times), flush=True)


class Worker:
    def __init__(self, path: str) -> None:
        self.child = subprocess.Popen(
            [sys.executable, __file__, "--work", path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **what: Any) -> float:
        assert self.child.stdin and self.child.stdout
        print(json.dumps(what), file=self.child.stdin, flush=True)
        return float(self.child.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv", choices=SIZE, default="bfloat16", help="how keys and values are stored")
    parser.add_argument("--against", default="", help="another build of the extension")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", action="append", default=[], help="of a row's name; repeat it")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        work(args.work)
        return
    from pronghorn.bench.limits import BYTES, Probe

    probe = Probe(args.threads)
    rows = []
    workers = [Worker(""), *([Worker(args.against)] if args.against else [])]
    for name, shape in SHAPES.items():
        for what, n in [("prefill", n) for n in PREFILL] + [("decode", n) for n in DECODE]:
            row = f"{name} {what} {n}"
            if args.only and not any(o in row for o in args.only):
                continue
            heads, n_kv, dim = shape
            layers = layers_for(*shape, what, n, args.kv)
            context, m = (0, n) if what == "prefill" else (n, 1)
            for w in workers:
                w.ask(build=(shape, layers, args.kv, args.threads, context))
            times: list[list[float]] = [[] for _ in workers]
            allowed = []
            for _ in range(args.repeats):
                for i, w in enumerate(workers):
                    once = 1 if n == 8192 and what == "prefill" else 3
                    times[i].append(w.ask(rows=m, times=once))
                allowed.append(probe.measure(BYTES))
            kind = "fp32" if args.kv == "float32" else "bf16"
            peak = statistics.median(a.peak(kind) for a in allowed) / 1e9
            gbs = statistics.median(a.memory for a in allowed) / 1e9
            mid = [statistics.median(t) for t in times]
            if what == "prefill":
                amount, limit, unit = 2e-9 * heads * dim * n * (n + 1) * layers, peak, "GFLOP/s"
            else:
                amount, limit, unit = 2e-9 * n * layers * n_kv * dim * SIZE[args.kv], gbs, "GB/s"
            rows.append([row, *(amount / t for t in mid), limit, amount / mid[0] / limit, unit])
            print(row, [f"{x:.1f}" if isinstance(x, float) else x for x in rows[-1][1:]], file=sys.stderr)
    where = {**machine(), "threads": str(args.threads), "kv": args.kv}
    if args.json:
        print(json.dumps({"rows": rows, "machine": where}))
        return
    print(said(where) + "\n")
    heads_of = ["", "ours", *(["other"] if args.against else []), "limit", "share", "unit"]
    body = [[r[0], *(f"{x:.1f}" for x in r[1:-2]), f"{100 * r[-2]:.0f} %", r[-1]] for r in rows]
    print(table(heads_of, body))


if __name__ == "__main__":
    main()
