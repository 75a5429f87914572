"""vLLM's CPU build, in bfloat16, its engine stepped by hand in this process."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GB

from vllm import LLM, SamplingParams

sys.path.append(str(Path(__file__).resolve().parent))
from _texts import n_vocab, tokens


class Driver:
    def prepare(self, model: str, precision: str, cache: str) -> str:
        if precision != "bf16":
            raise NotImplementedError("only bf16 is compared: it does not quantize checkpoints itself")
        return model

    def load(self, model: str, use: list[str], precision: str, threads: int, cache: str) -> dict[str, Any]:
        import vllm

        self.prepare(model, precision, cache)
        self.n_vocab = n_vocab(model)
        cores = sorted(os.sched_getaffinity(0))[:threads]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        self.engine = LLM(
            model, dtype="bfloat16", max_model_len=8192 + 256, enable_prefix_caching=False,
            max_num_batched_tokens=8192 + 256, max_num_seqs=32,
        ).llm_engine  # fmt: skip
        self.next = 0
        return {"version": vllm.__version__}

    def prefill(self, n: int) -> float:
        start = time.perf_counter()
        self._submit(n, n, 1)
        while self.engine.has_unfinished_requests():
            self.engine.step()
        return time.perf_counter() - start

    def decode(self, batch: int, context: int, tokens: int) -> float:
        # Early sequences write while the prompts of later ones run, a step for each prompt at most.
        waiting = {self._submit(context, s, tokens + 1 + batch) for s in range(batch)}
        names = list(waiting)
        while waiting:
            waiting -= {o.request_id for o in self.engine.step() if o.outputs and o.outputs[0].token_ids}
        start = time.perf_counter()
        for _ in range(tokens):
            self.engine.step()
        seconds = (time.perf_counter() - start) / tokens
        self.engine.abort_request(names)
        while self.engine.has_unfinished_requests():
            self.engine.step()
        return seconds

    def rows(self, n: int, context: int, repeat: int) -> float:
        raise NotImplementedError("a step of chosen rows cannot be asked for")

    def _submit(self, n: int, seed: int, new: int) -> str:
        self.next += 1
        name = str(self.next)
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        self.engine.add_request(name, {"prompt_token_ids": tokens(n, self.n_vocab, seed)}, params)
        return name
