"""NVIDIA's kvpress on transformers, in bfloat16: prompts are compressed as they are run, answers are greedy.

Tokens behind the prompt go in one by one, as layers may hold different numbers of rows, and have the
positions that they would have without compression.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import kvpress
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache


class Driver:
    def prepare(self, model: str, precision: str, cache: str) -> str:
        return model

    def load(self, model: str, use: list[str], precision: str, threads: int, cache: str) -> dict[str, Any]:
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        made = {
            how: AutoModelForCausalLM.from_pretrained(
                model, dtype=torch.bfloat16, attn_implementation=how
            ).eval()
            for how in ("sdpa", "eager")
        }  # fmt: skip
        self.models = made
        from importlib.metadata import version

        return {"version": f"{version('kvpress')}, transformers {transformers.__version__}"}

    def prefill(self, n: int) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            self.models["sdpa"](input_ids=torch.arange(n)[None])
        return time.perf_counter() - start

    @torch.inference_mode()
    def talk(
        self, press: str, options: dict[str, Any], keep: int, ids: list[int], asks: list[list[int]],
        limits: list[int], end: int,
    ) -> dict[str, Any]:  # fmt: skip
        """Run a prompt, of which `keep` rows of each head stay, and the turns behind it. press: "" for none.
        The answers without their ends, and bytes of the cache behind the prompt."""
        cache = DynamicCache()
        model = self.models["eager" if press == "ObservedAttentionPress" else "sdpa"]
        ratio = max(0.0, 1 - (keep + 0.5) / len(ids))
        made = _press(press, options, ratio) if press else None
        eager = {"output_attentions": True} if press == "ObservedAttentionPress" else {}
        with made(model) if made else contextlib.nullcontext():
            out = model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True, **eager)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        last, at = int(out.logits[0, -1].argmax()), len(ids)
        answers: list[list[int]] = []

        def step(token: int) -> int:
            nonlocal at
            made = model(
                input_ids=torch.tensor([[token]]), position_ids=torch.tensor([[at]]), past_key_values=cache,
                use_cache=True,
            )  # fmt: skip
            at += 1
            return int(made.logits[0, -1].argmax())

        for ask, limit in zip(asks, limits, strict=True):
            for token in ask:
                last = step(token)
            answer: list[int] = []
            while last != end and len(answer) < limit:
                answer.append(last)
                last = step(last)
            answers.append(answer)
            last = step(end)
        return {"answers": answers, "held": held}


def _press(name: str, options: dict[str, Any], ratio: float) -> Any:
    """An option "press" names a press inside."""
    inner = options.get("press")
    if inner:
        rest = {k: v for k, v in options.items() if k != "press"}
        return getattr(kvpress, name)(press=_press(inner, rest, ratio))
    return getattr(kvpress, name)(compression_ratio=ratio, **options)
