"""ONNX Runtime GenAI. Its own model builder converts and quantizes: int8 and int4 of weights, as it does by
default. It has no bfloat16 on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og

sys.path.append(str(Path(__file__).resolve().parent))
from _texts import made, n_vocab, tokens


class Driver:
    def prepare(self, model: str, precision: str, cache: str) -> str:
        if precision not in ("int8", "int4"):
            raise NotImplementedError(f"no {precision} on a CPU")

        def build(to: Path) -> None:
            tool = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
            what = ["-i", model, "-o", str(to), "-p", precision, "-e", "cpu", "-c", str(to) + ".cache"]
            done = subprocess.run([*tool, *what], check=False, capture_output=True, text=True)
            if done.returncode:
                raise ValueError(f"the model builder failed: {done.stderr.strip()[-500:]}")

        return str(made(Path(cache) / "onnxruntime" / precision, build))

    def load(self, model: str, use: list[str], precision: str, threads: int, cache: str) -> dict[str, Any]:
        path = self.prepare(model, precision, cache)
        self.n_vocab = n_vocab(model)
        config = og.Config(path)
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model = og.Model(config)
        return {"version": og.__version__, "process": os.getpid()}

    def prefill(self, n: int) -> float:
        generator = self._generator(1, n + 1)
        ids = np.array([tokens(n, self.n_vocab, n)], np.int32)
        start = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        return time.perf_counter() - start

    def decode(self, batch: int, context: int, tokens: int) -> float:
        generator = self._generator(batch, context + tokens + 2)
        generator.append_tokens(np.array([self._ids(context, s) for s in range(batch)], np.int32))
        generator.generate_next_token()
        start = time.perf_counter()
        for _ in range(tokens):
            generator.generate_next_token()
        return (time.perf_counter() - start) / tokens

    def rows(self, n: int, context: int, repeat: int) -> float:
        raise NotImplementedError("it gives the logits of the last row only")

    def _ids(self, n: int, seed: int) -> list[int]:
        return tokens(n, self.n_vocab, seed)

    def _generator(self, batch: int, length: int) -> Any:
        params = og.GeneratorParams(self.model)
        params.set_search_options(
            do_sample=False, batch_size=batch, max_length=length, min_length=length
        )  # fmt: skip
        return og.Generator(self.model, params)
