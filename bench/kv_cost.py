"""What KV methods cost: bytes that are held, and speed.

    python bench/kv_cost.py [--rounds 9] [--threads N] [--json]

Measured on a random model of the shape of a small real one (8 layers, width 896, 14 heads, 2 KV heads of 64,
bfloat16, nothing downloaded), at 1,000 and 4,000 prompt tokens; methods keep or read a quarter of the rows.
*held*: pages, positions and tables of the sequence after the prompt, from the store. *peak*: the most that
the arenas reserved until then. *speed*: decoding against the plain path; all decode in turn in one run,
`--block` tokens at a time, the ratio is taken within each round. What the methods decide means nothing on
random weights; what they cost does. What they keep: `bench/kv.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _report import Spread, machine, said, spread, table

from pronghorn.bench.kv_methods import entries, everything
from pronghorn.compose import compose
from pronghorn.llm import BUNDLED, make_engine
from pronghorn.model.tokenizer import load_tokenizer
from pronghorn.seq import Request

SHAPE = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 896, "intermediate_size": 2432,
    "num_hidden_layers": 8, "num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Bytes and speed of one method at one length of prompt; plain: of the plain path."""

    n_prompt: int
    method: str
    held: int
    held_plain: int
    peak: int
    peak_plain: int
    speed: Spread  # times plain
    tokens_per_second: float


def cost_methods(n: int) -> dict[str, tuple[str, ...]]:
    """All methods; a quarter of n rows where one has a budget."""
    both = f"snapkv:budget={n // 4} kvfmt.int8"
    return {e.label: e.use(n) for e in entries(everything(), [both], [4])}


def random_weights() -> tuple[Any, dict[str, Any]]:
    import ml_dtypes

    from pronghorn.model.arch import build_tape

    tape = build_tape(SHAPE)
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in tape.expected().items():
        w = rng.standard_normal(shape, np.float32) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)
        tensors[name] = (w + (1 if len(shape) == 1 else 0)).astype(ml_dtypes.bfloat16)
    return tape, tensors


class Contestant:
    """An engine with one sequence under way."""

    def __init__(self, model: tuple[Any, Any], use: Sequence[str], ids: Sequence[int], threads: int) -> None:
        from pronghorn.model.checkpoint import Checkpoint, Tensors

        tape, tensors = model
        checkpoint = Checkpoint(Path("random"), "hf", {}, Tensors.of(tensors), (), -1)
        tokenizer = load_tokenizer(BUNDLED / "pronghorn-tiny", {})
        made = compose(("match", *use))
        self.engine = make_engine(checkpoint, tape, made, tokenizer, "native", threads, 1 << 31)
        self.peak = 0
        for arena in (self.engine.store.open_arena, self.engine.store.sealed_arena):
            self._watch(arena)
        (self.seq,) = self.engine.submit(Request(tuple(ids), 8192, ignore_eos=True))
        while self.seq.kv.length < len(ids):
            self.engine.step()
        self.held = self.engine.store.bytes_of(self.seq.kv)
        self.at_prompt = self.peak

    def _watch(self, arena: Any) -> None:
        alloc = arena.alloc

        def watched(n: int) -> Any:
            out = alloc(n)
            self.peak = max(self.peak, self.engine.store.reserved)
            return out

        arena.alloc = watched

    def decode(self, n: int) -> float:
        """Tokens per second over n tokens."""
        start, first = time.perf_counter(), self.seq.n_new
        while self.seq.n_new < first + n:
            self.engine.step()
        return n / (time.perf_counter() - start)


def cost(n_prompt: int, rounds: int, block: int, threads: int) -> list[Cost]:
    model = random_weights()
    ids = np.random.default_rng(1).integers(3, SHAPE["vocab_size"], n_prompt).tolist()
    all_ = {name: Contestant(model, use, ids, threads) for name, use in cost_methods(n_prompt).items()}
    rates: dict[str, list[float]] = {name: [] for name in all_}
    for i in range(rounds + 1):
        for name, c in all_.items():
            rate = c.decode(block)
            if i:  # the first round warms up
                rates[name].append(rate)
    plain = all_["plain"]
    return [
        Cost(
            n_prompt, name, c.held, plain.held, c.at_prompt, plain.at_prompt,
            spread([a / b for a, b in zip(rates[name], rates["plain"], strict=True)]),
            spread(rates[name]).median,
        )
        for name, c in all_.items()
    ]  # fmt: skip


def cost_page(costs: list[Cost]) -> str:
    rows = []
    for c in costs:
        held, peak = c.held / c.held_plain, c.peak / c.peak_plain
        s = c.speed
        shown = "1" if c.method == "plain" else f"{s.median:.2f} ({s.low:.2f} to {s.high:.2f})"
        rows.append(
            [f"{c.n_prompt:,}", c.method, f"{c.held / 2**20:.2f} MiB", f"{held:.2f}", f"{peak:.2f}", shown,
             f"{c.tokens_per_second:.0f}", verdict(c)]
        )  # fmt: skip
    heads = ["prompt", "method", "held", "of plain", "peak of plain", "speed of plain", "tokens/s", "here it"]
    return table(heads, rows)


def verdict(c: Cost) -> str:
    """What the numbers say, nothing else."""
    if c.method == "plain":
        return ""
    held = c.held / c.held_plain
    parts = [f"saves {100 * (1 - held):.0f} % of the memory" if held < 0.98 else
             "saves no memory" if held < 1.02 else "takes more memory"]  # fmt: skip
    if c.speed.low > 1.02:
        parts.append("is faster")
    elif c.speed.high < 0.98:
        parts.append("is slower")
    else:
        parts.append("is as fast")
    return ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds of decoding")
    parser.add_argument("--block", type=int, default=16, help="tokens of each turn")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args()
    if min(args.rounds, args.block) < 1:
        parser.error("--rounds and --block must be at least 1")
    threads = args.threads or len(os.sched_getaffinity(0))
    costs = [c for n in (1000, 4000) for c in cost(n, args.rounds, args.block, threads)]
    where = {**machine(), "threads": str(threads)}
    if args.json:
        print(json.dumps({"cost": [asdict(c) for c in costs], "shape": SHAPE, "machine": where}))
        return
    print(said(where))
    print("\n" + cost_page(costs))


if __name__ == "__main__":
    main()
