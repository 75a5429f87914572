"""OpenVINO GenAI's continuous batching, its strongest way to run on a CPU.

The model is exported by optimum-intel. bf16: weights in fp16 as it exports them, computed in bfloat16;
int8: its default for 8 bits (per channel, asymmetric); int4: symmetric, groups of 32, all layers but those
that nncf keeps in 8 bits (embedding and head).

It speculates by prompt lookup ("lookup") and with a draft model in the same precision ("draft").
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

sys.path.append(str(Path(__file__).resolve().parent))
from _texts import Watch, made, n_vocab, tokens

FORMATS = {
    "bf16": ["--weight-format", "fp16"],
    "int8": ["--weight-format", "int8"],
    "int4": ["--weight-format", "int4", "--sym", "--group-size", "32", "--ratio", "1.0"],
}
BATCH = 2048  # rows of a step, at most
LOOKUP = {"num_assistant_tokens": 10, "max_ngram_size": 3}
DRAFT = {"num_assistant_tokens": 5}  # as in its samples


class Driver:
    def prepare(self, model: str, precision: str, cache: str) -> str:
        if precision not in FORMATS:
            raise NotImplementedError(f"no form for {precision}")
        target = Path(cache) / "openvino" / precision

        def export(to: Path) -> None:
            tool = Path(sys.executable).with_name("optimum-cli")
            task = ["--model", model, "--task", "text-generation-with-past"]
            command = [str(tool), "export", "openvino", *task, *FORMATS[precision], str(to)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                raise ValueError(f"export failed: {done.stderr.strip()[-500:]}")

        return str(made(target, export))

    def load(self, model: str, use: list[str], precision: str, threads: int, cache: str) -> dict[str, Any]:
        path = self.prepare(model, precision, cache)
        self.n_vocab = n_vocab(model)
        config = genai.SchedulerConfig()
        config.max_num_batched_tokens = BATCH
        config.enable_prefix_caching = False
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16"}
        way = use[0] if use else ""
        self.assistant: dict[str, int] = {"lookup": LOOKUP, "draft": DRAFT}.get(way, {})
        if way == "draft":
            draft = self.prepare(use[1], precision, use[2])
            properties["draft_model"] = genai.draft_model(draft, "CPU", **properties)
        elif way == "lookup":
            properties["prompt_lookup"] = True
        self.pipe = genai.ContinuousBatchingPipeline(path, config, "CPU", properties)
        self.next = 0
        return {"version": genai.__version__}

    def prefill(self, n: int) -> float:
        start = time.perf_counter()
        handle = self._submit(n, n, 1)  # kept: a request whose handle is gone is dropped
        while self.pipe.has_non_finished_requests():
            self.pipe.step()
        seconds = time.perf_counter() - start
        if sum(len(o.generated_ids) for o in handle.read_all()) != 1:
            raise ValueError("the prompt did not run")
        return seconds

    def decode(self, batch: int, context: int, tokens: int) -> float:
        # Early sequences write while the prompts of later ones run, a step for each prompt at most.
        more = tokens + 1 + batch * (1 + context // BATCH)
        handles = [self._submit(context, s, more) for s in range(batch)]
        while not all(h.can_read() for h in handles):  # every prompt is through
            self.pipe.step()
        start = time.perf_counter()
        for _ in range(tokens):
            self.pipe.step()
        seconds = (time.perf_counter() - start) / tokens
        if not all(h.can_read() for h in handles):
            raise ValueError("some sequences did not run")
        for handle in handles:
            handle.cancel()
        while self.pipe.has_non_finished_requests():
            self.pipe.step()
        return seconds

    def rows(self, n: int, context: int, repeat: int) -> float:
        raise NotImplementedError("a step of chosen rows cannot be asked for")

    def answer(
        self, prompts: list[list[int]], tokens: int, temperature: float, seed: int, stop: list[int]
    ) -> dict[str, Any]:
        watch = Watch(len(prompts))
        handles = []
        for i, ids in enumerate(prompts):
            config = self._config(tokens)
            config.ignore_eos = not stop
            config.stop_token_ids = set(stop)
            if temperature > 0:
                config.do_sample, config.temperature, config.rng_seed = True, temperature, seed + i
                config.top_p, config.top_k = 1.0, self.n_vocab
            handles.append(self._add(ids, config))
        while self.pipe.has_non_finished_requests():
            self.pipe.step()
            for i, handle in enumerate(handles):
                while handle.can_read():
                    watch.got(i, [t for o in handle.read().values() for t in o.generated_ids])
            watch.turn()
        return watch.report()

    def _submit(self, n: int, seed: int, new: int) -> Any:
        config = self._config(new)
        config.min_new_tokens = new
        config.ignore_eos = True
        return self._add(tokens(n, self.n_vocab, seed), config)

    def _config(self, new: int) -> Any:
        config = genai.GenerationConfig()
        config.max_new_tokens = new
        config.do_sample = False
        config.apply_chat_template = False
        for name, value in self.assistant.items():
            setattr(config, name, value)
        return config

    def _add(self, ids: list[int], config: Any) -> Any:
        self.next += 1
        return self.pipe.add_request(self.next, ov.Tensor(np.array([ids], np.int64)), config)
