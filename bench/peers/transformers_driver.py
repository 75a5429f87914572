"""transformers on PyTorch, in bfloat16, attention by torch's own kernel ("sdpa"), without compilation."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

sys.path.append(str(Path(__file__).resolve().parent))
from _texts import tokens


class Driver:
    def prepare(self, model: str, precision: str, cache: str) -> str:
        if precision != "bf16":
            raise NotImplementedError("on a CPU it has no kernels for 8 or 4 bits of its own")
        return model

    def load(self, model: str, use: list[str], precision: str, threads: int, cache: str) -> dict[str, Any]:
        import transformers

        self.prepare(model, precision, cache)
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()
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

    def _filled(self, batch: int, context: int) -> tuple[DynamicCache, torch.Tensor]:
        cache = DynamicCache()
        ids = torch.tensor([tokens(context, self.n_vocab, i) for i in range(batch)])
        return cache, self._step(ids, cache, 1).argmax(-1)

    def _step(self, ids: torch.Tensor, cache: DynamicCache, wanted: int) -> torch.Tensor:
        """Logits of the last `wanted` rows of every sequence."""
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=wanted)
        return torch.as_tensor(out.logits)
