"""Decoding speed on the bundled model against transformers (bfloat16, eager attention), same prompt.

    python bench/decode.py [--tokens 256] [--rounds 7] [--threads N] [--backend native] [--json]

Everything runs in this one process, and the contestants take turns in every round, so that a busy
machine slows them alike. A rate counts the tokens after the first burst over the time since that burst:
the prompt is left out on both sides. The ratio is taken within each round. A warm-up round is not
counted. Nobody stops at an end of text, so that all write the same number of tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from _report import machine, said, spread

PROMPT = (
    "Copy this list three times.\n"
    "the red lamp stands on the old table by the door\n"
    "the blue cup stands on the new shelf by the wall\n"
    "the red lamp stands on the old table by the door\n"
    "the blue cup stands on the new shelf by the wall\n"
)
Timed = tuple[float, list[int]]  # tokens per second, tokens


def rate(bursts: list[tuple[float, int]]) -> float:
    """bursts: (time, tokens that came with it), in order."""
    after = sum(n for _, n in bursts[1:])
    return after / (bursts[-1][0] - bursts[0][0])


def pronghorn(backend: str, threads: int, plain: bool) -> Callable[[str, int], Timed]:
    from pronghorn.llm import DEFAULT_USE, LLM

    used = ("match", "fcfs") if plain else tuple(u for u in DEFAULT_USE if u != "prefix")
    llm = LLM(backend=backend, threads=threads, defaults=used)

    def decode(prompt: str, n: int) -> Timed:
        bursts, tokens = [], []
        for piece in llm.stream(prompt, max_tokens=n, ignore_eos=True):
            bursts.append((time.perf_counter(), len(piece.tokens)))
            tokens += piece.tokens
        return rate(bursts), tokens

    return decode


def transformers(threads: int) -> Callable[[str, int], Timed]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.generation.streamers import BaseStreamer
    from transformers.utils import logging

    from pronghorn.llm import BUNDLED, DEFAULT_MODEL

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    folder = str(BUNDLED / DEFAULT_MODEL)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager")
    model.eval()
    model.generation_config.eos_token_id = None
    model.generation_config.max_length = None  # `max_new_tokens` says it
    tokenizer = AutoTokenizer.from_pretrained(folder)

    class Clock(BaseStreamer):
        def __init__(self) -> None:
            self.bursts: list[tuple[float, int]] = []
            self.is_prompt = True

        def put(self, value: Any) -> None:
            if not self.is_prompt:
                self.bursts.append((time.perf_counter(), value.numel()))
            self.is_prompt = False

        def end(self) -> None:
            pass

    def decode(prompt: str, n: int) -> Timed:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        clock = Clock()
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False,
                streamer=clock, pad_token_id=1,
            )  # fmt: skip
        return rate(clock.bursts), out[0, ids.shape[1] :].tolist()

    return decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=256, help="new tokens")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds")
    parser.add_argument("--threads", type=int, default=0, help="of each contestant; 0: all cores")
    parser.add_argument("--backend", default="native")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args()
    if args.tokens < 2 or args.rounds < 1:
        parser.error("--tokens must be at least 2 and --rounds at least 1")
    threads = args.threads or len(os.sched_getaffinity(0))
    base = "transformers"
    contestants = {
        f"{args.backend}, plain": pronghorn(args.backend, threads, True),
        f"{args.backend}, default drafter": pronghorn(args.backend, threads, False),
        base: transformers(threads),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    texts: dict[str, list[int]] = {}
    for i in range(args.rounds + 1):
        for name, decode in contestants.items():
            per_second, texts[name] = decode(args.prompt, args.tokens)
            if i:
                rates[name].append(per_second)
    ratios = {
        name: spread([x / y for x, y in zip(own, rates[base], strict=True)])
        for name, own in rates.items()
        if name != base
    }
    medians = {name: spread(own) for name, own in rates.items()}
    same = {name: common(tokens, texts[base]) for name, tokens in texts.items() if name != base}
    where = {**machine(), "threads": str(threads)}
    if args.json:
        print(
            json.dumps(
                {
                    "tokens_per_second": {name: asdict(s) for name, s in medians.items()},
                    "ratio": {name: asdict(s) for name, s in ratios.items()},
                    "same_tokens": same, "tokens": args.tokens, "prompt": args.prompt, "machine": where,
                }
            )
        )  # fmt: skip
        return
    print(f"{args.tokens} tokens, {args.rounds} rounds in turn, one process; {said(where)}")
    for name, s in medians.items():
        line = f"{name:24} {s.median:8.0f} tokens/s, from {s.low:.0f} to {s.high:.0f}"
        if name != base:
            r = ratios[name]
            line += f"; {r.median:.1f} times transformers, from {r.low:.1f} to {r.high:.1f}"
            line += f"; first {same[name]} tokens alike"
        print(line)


def common(a: list[int], b: list[int]) -> int:
    """Length of the common start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


if __name__ == "__main__":
    main()
