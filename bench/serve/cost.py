"""How well a step's time is predicted: mixes of answers and prompts that the cost model has not seen.

    python bench/serve/cost.py [--model bundled|qwen2.5-0.5b|...] [--dir FOLDER] [--use METHOD ...]
                               [--threads N] [--steps 150] [--held 60] [--most 256] [--json]

A model named as in `pronghorn/bench/shapes.py` is made of random weights, once. Only the native step is
timed. First the model is calibrated as a server does it, and says what the held-out mixes will take; then
it sees `--steps` mixes of other sizes, one after another, and says it again. A held-out mix is timed three
times, and the median counts. Errors are given as predicted / measured: 10th, 50th and 90th percentile, and
the median distance. The spread of the three timings is printed beside them: no prediction can be better than
that.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pronghorn.bench.limits import machine
from pronghorn.bench.shapes import SHAPES, cache, find_shape, make
from pronghorn.calibrate.steps import calibrate
from pronghorn.cost import StepCost, reads
from pronghorn.llm import LLM
from pronghorn.types import Rows

CONTEXTS = (8, 40, 100, 200, 300, 500, 700, 1000, 1500, 2000)
BUNDLED = Path(__file__).resolve().parents[2] / "pronghorn" / "bundled" / "pronghorn-tiny"


@dataclass(frozen=True)
class Mix:
    """Sequences by index into the pool, and how many rows each has in the step."""

    parts: tuple[tuple[int, int], ...]


class Steps:
    """Steps over a pool of sequences of different lengths. Nothing is committed."""

    def __init__(self, llm: LLM) -> None:
        self.engine = llm.engine
        self.pool = [self._made(n) for n in CONTEXTS for _ in range(3)]

    def _made(self, n: int) -> Any:
        store, kv = self.engine.store, self.engine.store.new()
        while kv.length < n:
            take = min(256, n - kv.length)
            self._run([(kv, take)])
            addr, block, slot = store.reserve(kv, take)
            self.engine.runner.commit(np.arange(take, dtype=np.int32), addr, block, slot)
            store.extend(kv, range(kv.next_pos, kv.next_pos + take))
        return kv

    def _run(self, parts: list[tuple[Any, int]]) -> float:
        ids, pos, seq, parent, want = [], [], [], [], []
        for i, (kv, n) in enumerate(parts):
            at = len(ids)
            ids += [(7 * j + 1) % 250 + 1 for j in range(n)]
            pos += range(kv.next_pos, kv.next_pos + n)
            seq += [i] * n
            parent += [-1, *range(at, at + n - 1)]
            want += [0] * (n - 1) + [1]
        arrays = [np.asarray(x, np.int32) for x in (ids, pos, seq, parent, want)]
        rows = Rows(arrays[0], arrays[1], arrays[1] + 1, *arrays[2:])
        begin = time.perf_counter()
        self.engine.runner.run(rows, [kv for kv, _ in parts], False)
        return time.perf_counter() - begin

    def time(self, mix: Mix) -> float:
        return self._run([(self.pool[i], n) for i, n in mix.parts])

    def size(self, mix: Mix) -> tuple[int, int]:
        return sum(n for _, n in mix.parts), sum(reads(n, self.pool[i].length) for i, n in mix.parts)


def mixes(n: int, seed: int, pool: int, most: int) -> list[Mix]:
    """Some answers, and in two of three a chunk of a prompt."""
    r = np.random.default_rng(seed)
    out = []
    for i in range(n):
        answers = int(r.integers(0 if i % 3 else 1, min(17, pool)))
        chosen = r.permutation(pool)[: answers + 1]
        parts = [(int(j), 1) for j in chosen[:answers]]
        if i % 3:
            parts.append((int(chosen[answers]), int(2 ** r.uniform(1, np.log2(most)))))
        out.append(Mix(tuple(parts)))
    return out


def errors(cost: StepCost, steps: Steps, held: list[Mix]) -> dict[str, Any]:
    ratio, spread = [], []
    for mix in held:
        predicted = cost.predict(*steps.size(mix))
        times = sorted(steps.time(mix) for _ in range(3))
        ratio.append(predicted / times[1])
        spread.append(times[2] / times[0] - 1)
    r = np.array(ratio)
    return {
        "ratio": [round(float(x), 3) for x in np.percentile(r, [10, 50, 90])],
        "error": round(float(np.median(np.abs(r - 1))), 3),
        "error_p90": round(float(np.percentile(np.abs(r - 1), 90)), 3),
        "spread": round(float(np.median(spread)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled", choices=["bundled", *SHAPES])
    parser.add_argument("--dir", type=Path, default=cache() / "shapes", help="where shapes are kept")
    parser.add_argument("--use", nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--held", type=int, default=60)
    parser.add_argument("--most", type=int, default=256, help="rows of a chunk at most")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    folder = BUNDLED
    if args.model != "bundled":
        folder = make(find_shape(args.model), args.dir / args.model, lambda done, total: None)
    llm = LLM(str(folder), use=args.use, threads=args.threads)
    steps = Steps(llm)
    engine = llm.engine
    engine.cost = StepCost()
    begin = time.perf_counter()
    calibrate(engine)
    took = time.perf_counter() - begin
    held = mixes(args.held, 1, len(steps.pool), args.most)
    found: dict[str, Any] = {"model": args.model, "machine": machine(), "calibration_s": round(took, 3)}
    found["calibrated"] = errors(engine.cost, steps, held)
    for mix in mixes(args.steps, 2, len(steps.pool), args.most):
        engine.cost.observe(*steps.size(mix), steps.time(mix))
    found["learned"] = errors(engine.cost, steps, held)
    if args.json:
        print(json.dumps(found))
        return
    print(f"{args.model}, calibrated in {took:.2f} s; predicted / measured of {args.held} mixes")
    print("                 p10    p50    p90   median error   p90 error   spread of three timings")
    for name in ("calibrated", "learned"):
        e = found[name]
        numbers = " ".join(f"{x:6.2f}" for x in e["ratio"])
        print(f"{name:12} {numbers} {e['error']:13.1%} {e['error_p90']:11.1%} {e['spread']:12.1%}")


if __name__ == "__main__":
    main()
