"""Steps of sequences that share a prefix, with the prefix's pages shared and with a copy for each sequence.

    python bench/shared_prefix.py [--shape qwen2.5-0.5b] [--prefix 2048] [--own 32] [--batch 1,4,8,16,32]
                                  [--kv bfloat16] [--threads 2] [--repeats 7] [--quick] [--json]

A model of that shape with random weights (`pronghorn.bench.shapes`), bfloat16. All sequences have the prefix
and tokens of their own behind it; a step is one token for each of them. Both ways alternate, and figures are
medians: of a step, of the part of it that its attention takes, and the bytes of keys and values that it
reads, as the runner counts them. The logits of both ways are compared, bit for bit. --quick: small batches,
few repeats and a small model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from _report import machine, said, table

from pronghorn.types import Rows

if TYPE_CHECKING:
    from pronghorn.engine import Engine
    from pronghorn.kv.store import SeqKV, Store


@dataclass
class Figures:
    """Of a step: seconds, seconds of its attention, bytes of keys and values that it reads."""

    step: float
    attention: float
    n_bytes: int


def engine_of(shape: str, kv: str, threads: int) -> Engine:
    from pronghorn.bench.shapes import kept
    from pronghorn.llm import LLM

    folder = kept(shape)
    use = ["match", "fcfs", *(["kvfmt.int8"] if kv == "int8" else [])]
    return LLM(str(folder), use, threads=threads, defaults=()).engine


def run(engine: Engine, kvs: list[SeqKV], n: int, seed: int) -> tuple[Rows, Any]:
    """A step of n rows for each sequence; the last ones' logits are wanted."""
    ids = np.random.default_rng(seed).integers(0, engine.bound.n_vocab, n * len(kvs)).astype(np.int32)
    at = np.arange(n, dtype=np.int32)
    seq = np.repeat(np.arange(len(kvs), dtype=np.int32), n)
    pos = np.concatenate([kv.next_pos + at for kv in kvs]).astype(np.int32)
    flat = np.arange(len(ids), dtype=np.int32)
    first = flat % n == 0
    rows = Rows(
        ids, pos, pos + np.int32(1), seq, np.where(first, -1, flat - 1).astype(np.int32),
        (flat % n == n - 1).astype(np.int32),
    )  # fmt: skip
    return rows, engine.runner.run(rows, kvs, False).logits


def append(engine: Engine, kv: SeqKV, n: int, seed: int) -> None:
    """n tokens more."""
    while n:
        part = min(n, 512)
        rows, _ = run(engine, [kv], part, seed + n)
        engine.runner.commit(np.arange(part, dtype=np.int32), *engine.store.reserve(kv, part))
        engine.store.extend(kv, rows.pos)
        n -= part


def apart(store: Store, kv: SeqKV) -> SeqKV:
    """The same rows in pages of its own."""
    new = store.fork(kv)
    held = [(new.open, store.open_arena), *((s.blocks, store.sealed_arena) for s in new.sealed)]
    for blocks, arena in held:
        for i, b in enumerate(blocks):
            blocks[i] = arena.copy(int(b))
    new.open_addr = store.open_arena.address(new.open)
    for s in new.sealed:
        s.addr = store.sealed_arena.address(s.blocks)
    store._point(new)
    return new


def attention(engine: Engine, steps: int) -> float:
    """Seconds of the calling thread in the parts that attend, of each step since the profile began."""
    exe: Any = engine.runner.exe  # type: ignore[attr-defined]
    mine = exe.stop_profile()[0][1:]
    parts = exe.portions()
    return sum(t[0] for t, (ops, _) in zip(mine, parts, strict=True) if "attend" in ops) / 1e9 / steps


def measure(engine: Engine, ways: dict[str, list[SeqKV]], repeats: int) -> dict[str, Figures]:
    runner: Any = engine.runner
    logits, times, inside, n_bytes = {}, {}, {}, {}
    for name, kvs in ways.items():
        logits[name] = run(engine, kvs, 1, 7)[1].copy()
        n_bytes[name] = runner.read_bytes
        times[name], inside[name] = [], []
    assert np.array_equal(*logits.values()), "sharing changed a result"
    for _ in range(repeats):
        for name, kvs in ways.items():
            runner.exe.start_profile()
            start = time.perf_counter()
            run(engine, kvs, 1, 7)
            times[name].append(time.perf_counter() - start)
            inside[name].append(attention(engine, 1))
    return {
        name: Figures(statistics.median(times[name]), statistics.median(inside[name]), n_bytes[name])
        for name in ways
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="qwen2.5-0.5b")
    parser.add_argument("--prefix", type=int, default=2048, help="tokens that all share")
    parser.add_argument("--own", type=int, default=32, help="tokens that each has behind them")
    parser.add_argument("--batch", default="1,4,8,16,32", help="numbers of sequences")
    parser.add_argument("--kv", choices=("bfloat16", "int8"), default="bfloat16", help="of the prefix")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.shape, args.batch, args.repeats = "smollm2-135m", "1,8", 3
    engine = engine_of(args.shape, args.kv, args.threads)
    prefix = engine.store.new()
    append(engine, prefix, args.prefix, 1)
    if args.kv == "int8":
        engine.store.seal(prefix)
    ways: dict[str, list[SeqKV]] = {"shared": [], "copies": []}
    results = []
    for n in sorted(int(b) for b in args.batch.split(",")):
        while len(ways["shared"]) < n:
            kv = engine.store.fork(prefix)
            append(engine, kv, args.own, 100 * len(ways["shared"]))
            ways["shared"].append(kv)
            ways["copies"].append(apart(engine.store, kv))
        got = measure(engine, ways, args.repeats)
        results.append({"sequences": n, **{name: asdict(f) for name, f in got.items()}})
        print(results[-1], file=sys.stderr)
    where = {**machine(), "threads": str(engine.runner.n_threads), "kv": args.kv}  # type: ignore[attr-defined]
    if args.json:
        print(json.dumps({"rows": results, "machine": where}))
        return
    print(said(where))
    print(f"{args.shape}, {args.prefix} tokens shared, {args.own} own; bits of both ways are the same\n")
    heads = ["sequences", "KV read, MB: shared", "copies", "attention, ms: shared", "copies", "times",
             "step, ms: shared", "copies", "times"]  # fmt: skip
    body = []
    for r in results:
        a, b = r["shared"], r["copies"]
        body.append([
            str(r["sequences"]), f"{a['n_bytes'] / 1e6:.1f}", f"{b['n_bytes'] / 1e6:.1f}",
            f"{a['attention'] * 1e3:.2f}", f"{b['attention'] * 1e3:.2f}",
            f"{b['attention'] / a['attention']:.2f}", f"{a['step'] * 1e3:.2f}", f"{b['step'] * 1e3:.2f}",
            f"{b['step'] / a['step']:.2f}",
        ])  # fmt: skip
    print(table(heads, body))


if __name__ == "__main__":
    main()
