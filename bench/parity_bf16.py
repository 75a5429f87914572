"""The native runner in bfloat16 against transformers in bfloat16 (eager attention), same weights.

    python bench/parity_bf16.py [--tokens 300] [--new 64] [--only NAME ...] [--json]

Models: the bundled one, and a small random checkpoint of each architecture (`tests/tiny.py`), written in
bfloat16 by transformers. Each text is read once by four contestants:

    ours          native, bfloat16 weights and KV
    hf16          transformers in bfloat16, whose logits are bfloat16 too
    hf32, exact   the same weights in float32 (transformers) and in float64 (our oracle)

Columns. *positions*: teacher-forced. *ours=hf16*: same first choice. *hf16=hf32*: how often transformers
agrees with itself in float32: what bfloat16 costs there. *ours=exact*: what it costs here. *near ties*:
positions whose two best logits are within 0.05 of each other in float32. *not near*: positions where ours
is not the exact first choice and the exact gap between the two is 0.05 or more; *worst gap* is the largest.
*diverged*: greedy answers that part from transformers' within `--new` tokens; *gaps*: at each parting, the
float32 (hf32) gap between the two tokens; a negative one means that ours is the better of the two.

Gemma: transformers rounds the factor sqrt(width) of the embedding to bfloat16 with the rest of the model,
here it is the float32 value, so the two differ before any layer has run. Mixtures of experts: a router's
near tie sends a row to another expert, after which a gap may be of any size.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _report import machine, said, table

ROOT = Path(__file__).resolve().parents[1]
NEAR = 0.05
SHAPES = (
    "llama-gqa", "llama-llama3", "mistral-window", "ministral-mixed", "qwen2-gqa", "qwen3-odd", "gemma2-gqa",
    "gemma3-pattern", "phi3-gqa", "olmo2-gqa", "smollm3-nope", "gpt2-tied", "mixtral-gqa", "qwen3-moe-gqa",
    "olmoe-gqa",
)  # fmt: skip


@dataclass(frozen=True)
class Parting:
    """Where a greedy answer leaves transformers' answer. Gaps: logit of theirs minus logit of ours, in
    transformers' own bfloat16 and in its float32 logits."""

    prompt: int
    at: int
    ours: int
    theirs: int
    gap16: float
    gap32: float


@dataclass(frozen=True)
class Result:
    """Of one model; the shares are of `positions`."""

    model: str
    positions: int
    ours_hf16: float
    hf16_hf32: float
    ours_exact: float
    near: float
    not_near: int
    worst_gap: float
    answers: int
    partings: tuple[Parting, ...]


class Ours:
    """A checkpoint folder on one of our backends."""

    def __init__(self, folder: Path, backend: str, threads: int) -> None:
        from pronghorn.compose import compose
        from pronghorn.llm import BUNDLED, make_engine
        from pronghorn.model.arch import build_tape
        from pronghorn.model.checkpoint import load_checkpoint
        from pronghorn.model.tokenizer import load_tokenizer

        checkpoint = load_checkpoint(folder)
        tape = build_tape(checkpoint.config)
        # ids in, ids out: of the tokenizer only the size of its vocabulary matters here
        tokenizer = load_tokenizer(BUNDLED / "pronghorn-tiny", {})
        self.engine = make_engine(checkpoint, tape, compose(("match",)), tokenizer, backend, threads)

    def logits(self, ids: Sequence[int]) -> Any:
        """(n, n_vocab) of every row, all run in one step."""
        from pronghorn.types import Rows

        n, e = len(ids), self.engine
        at = np.arange(n, dtype=np.int32)
        full = np.full(n, n, np.int32)
        rows = Rows(np.array(ids, np.int32), at, full, 0 * at, at - 1, 0 * at + 1)
        kv = e.store.new()
        out = np.array(e.runner.run(rows, [kv], False).logits)
        kv.free()
        return out

    def greedy(self, ids: Sequence[int], n: int) -> list[int]:
        from pronghorn.seq import Request

        ((seq,),) = self.engine.run([Request(tuple(ids), n, ignore_eos=True)])
        return list(seq.new)


class Theirs:
    """The same folder in transformers."""

    def __init__(self, folder: Path, dtype: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=getattr(torch, dtype), attn_implementation="eager"
        ).eval()

    def logits(self, ids: Sequence[int]) -> Any:
        with self.torch.inference_mode():
            return self.model(self.torch.tensor([list(ids)])).logits[0].float().numpy()

    def greedy(self, ids: Sequence[int], n: int) -> tuple[list[int], Any]:
        """Tokens and the logits (n, n_vocab) that chose them, with its cache, a token at a time."""
        tokens: list[int] = []
        rows: list[Any] = []
        feed, cache = list(ids), None
        with self.torch.inference_mode():
            while len(tokens) < n:
                out = self.model(self.torch.tensor([feed]), past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                rows.append(out.logits[0, -1].float().numpy())
                tokens.append(int(rows[-1].argmax()))
                feed = tokens[-1:]
        return tokens, np.stack(rows)


def compare(name: str, folder: Path, texts: list[list[int]], n_new: int, threads: int) -> Result:
    """texts: token ids; the first half of each is the prompt of a greedy answer."""
    ours, exact = Ours(folder, "native", threads), Ours(folder, "ref64", threads)
    hf16, hf32 = Theirs(folder, "bfloat16", threads), Theirs(folder, "float32", threads)
    if ours.engine.bound.dtype != "bfloat16":
        raise SystemExit(f"{name} is stored in {ours.engine.bound.dtype}, not in bfloat16")
    a, b, c, x = (np.concatenate([m.logits(t) for t in texts]) for m in (ours, hf16, hf32, exact))
    top_a, top_b, top_c, top_x = (y.argmax(-1) for y in (a, b, c, x))
    row = np.arange(len(x))
    two = np.sort(c, axis=-1)[:, -2:]
    lost = x[row, top_x] - x[row, top_a]
    partings = []
    for i, t in enumerate(texts):
        prompt = t[: len(t) // 2]
        mine = ours.greedy(prompt, n_new)
        other, chosen = hf16.greedy(prompt, n_new)
        differ = [j for j in range(n_new) if mine[j] != other[j]]
        if differ:
            j = differ[0]
            at = hf32.logits(prompt + other[:j])[-1]
            gap16 = float(chosen[j][other[j]] - chosen[j][mine[j]])
            partings.append(Parting(i, j, mine[j], other[j], gap16, float(at[other[j]] - at[mine[j]])))
    return Result(
        name, len(x), float(np.mean(top_a == top_b)), float(np.mean(top_b == top_c)),
        float(np.mean(top_a == top_x)), float(np.mean(two[:, 1] - two[:, 0] < NEAR)),
        int(np.sum(lost >= NEAR)), float(lost.max()), len(texts), tuple(partings),
    )  # fmt: skip


def documents(n: int) -> list[list[int]]:
    """Texts of n tokens for the bundled model: our own pages, and the look-ups it was made for."""
    from pronghorn.bench.passages import needle, registry
    from pronghorn.llm import BUNDLED
    from pronghorn.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(BUNDLED / "pronghorn-tiny", {})
    pages = [(ROOT / "docs" / f"{p}.md").read_text() for p in ("design", "guarantees", "add-a-method")]
    code = [(ROOT / "pronghorn" / f"{p}.py").read_text() for p in ("engine", "compose", "types")]
    out = [tokenizer.encode(t) for t in pages + code]
    for i in range(6):
        task = (registry if i % 2 else needle)(i, 60)
        out.append(tokenizer.chat([{"role": "user", "content": f"{task.text}{task.questions[0][0]}"}]))
    return [ids[:n] for ids in out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=300, help="tokens of each text")
    parser.add_argument("--new", type=int, default=64, help="tokens of each greedy answer")
    parser.add_argument("--threads", type=int, default=1, help="of each contestant")
    parser.add_argument("--only", action="append", default=[], help="a model of the table; repeat it")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args()
    if args.tokens < 2 or args.new < 1:
        parser.error("--tokens must be at least 2 and --new at least 1")
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import tiny

    from pronghorn.llm import BUNDLED

    results = []
    for name in ("pronghorn-tiny", *SHAPES):
        if args.only and name not in args.only:
            continue
        if name in SHAPES:
            random = np.random.default_rng(3)
            texts = [random.integers(3, tiny.VOCAB, args.tokens).tolist() for _ in range(4)]
            folder = tiny.checkpoint(name, "bfloat16")
        else:
            texts, folder = documents(args.tokens), BUNDLED / name
        results.append(compare(name, folder, texts, args.new, args.threads))
    where = {**machine(), "threads": str(args.threads)}
    if args.json:
        print(json.dumps({"models": [asdict(r) for r in results], "near": NEAR, "machine": where}))
        return
    print(said(where) + "\n")
    print(page(results))


def page(results: list[Result]) -> str:
    heads = ["model", "positions", "ours=hf16", "hf16=hf32", "ours=exact", "near ties", "not near",
             "worst gap", "diverged", "gaps"]  # fmt: skip
    rows = []
    for r in results:
        gaps = ", ".join(f"{p.gap32:+.3f}" for p in r.partings)
        shares = [f"{100 * x:.1f} %" for x in (r.ours_hf16, r.hf16_hf32, r.ours_exact, r.near)]
        rows.append(
            [r.model, str(r.positions), *shares, str(r.not_near), f"{r.worst_gap:.3f}",
             f"{len(r.partings)} of {r.answers}", gaps]
        )  # fmt: skip
    return table(heads, rows)


if __name__ == "__main__":
    main()
