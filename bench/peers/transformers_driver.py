"""transformers on PyTorch, in bfloat16, attention by torch's own kernel ("sdpa"), without compilation.

It speculates one prompt at a time: by prompt lookup ("lookup"), and with an assistant model ("draft").
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

sys.path.append(str(Path(__file__).resolve().parent))
from _texts import Watch, tokens


class Driver:
    def prepare(self, model: str, precision: str, cache: str) -> str:
        if precision != "bf16":
            raise NotImplementedError("on a CPU it has no kernels for 8 or 4 bits of its own")
        return model

    def load(self, model: str, use: list[str], precision: str, threads: int, cache: str) -> dict[str, Any]:
        import transformers

        self.prepare(model, precision, cache)
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()  # else its assistant warns at every draft
        self.model = _model(model)
        way = use[0] if use else ""
        self.assistant: dict[str, Any] = {}
        if way == "lookup":
            self.assistant = {"prompt_lookup_num_tokens": 10, "max_matching_ngram_size": 3}
        elif way == "draft":
            self.assistant = {"assistant_model": _model(use[1])}
        self.n_vocab = self.model.config.vocab_size
        return {"version": f"{transformers.__version__}, torch {torch.__version__}"}

    @torch.inference_mode()
    def prefill(self, n: int) -> float:
        ids = torch.tensor([tokens(n, self.n_vocab, n)])
        start = time.perf_counter()
        self._step(ids, DynamicCache(), 1).argmax(-1)
        return time.perf_counter() - start

    @torch.inference_mode()
    def decode(self, batch: int, context: int, tokens: int) -> float:
        cache, last = self._filled(batch, context)
        for i in range(tokens + 1):
            if i == 1:
                start = time.perf_counter()
            last = self._step(last, cache, 1).argmax(-1)
        return (time.perf_counter() - start) / tokens

    @torch.inference_mode()
    def rows(self, n: int, context: int, repeat: int) -> float:
        cache, _ = self._filled(1, context)
        ids = torch.tensor([tokens(n, self.n_vocab, n)])
        total = 0.0
        for i in range(repeat + 1):
            start = time.perf_counter()
            self._step(ids, cache, n)
            if i:
                total += time.perf_counter() - start
            cache.crop(-n)
        return total / repeat

    @torch.inference_mode()
    def answer(
        self, prompts: list[list[int]], tokens: int, temperature: float, seed: int, stop: list[int]
    ) -> dict[str, Any]:
        if len(prompts) > 1:
            raise NotImplementedError("it speculates one prompt at a time")
        torch.manual_seed(seed)
        ids = torch.tensor(prompts)
        config = self.model.generation_config
        config.eos_token_id = stop or None
        config.pad_token_id = config.pad_token_id or 0
        sample = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
        watch = Watch(1)
        self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, streamer=_Ear(watch),
            **({"do_sample": False} | sample), **self.assistant,
        )  # fmt: skip
        return watch.report()

    def _filled(self, batch: int, context: int) -> tuple[DynamicCache, torch.Tensor]:
        cache = DynamicCache()
        ids = torch.tensor([tokens(context, self.n_vocab, i) for i in range(batch)])
        return cache, self._step(ids, cache, 1).argmax(-1)

    def _step(self, ids: torch.Tensor, cache: DynamicCache, wanted: int) -> torch.Tensor:
        """Logits of the last `wanted` rows of every sequence."""
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=wanted)
        return torch.as_tensor(out.logits)


class _Ear:
    """A streamer that tells a watch. The prompt comes first."""

    def __init__(self, watch: Watch) -> None:
        self._watch, self._begun = watch, False

    def put(self, ids: torch.Tensor) -> None:
        if self._begun:
            self._watch.got(0, ids.flatten().tolist())
            self._watch.turn()
        self._begun = True

    def end(self) -> None:
        pass


def _model(path: str) -> Any:
    made = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="sdpa")
    return made.eval()
