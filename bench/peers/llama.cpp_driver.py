"""llama.cpp, through its C interface as llama-cpp-python gives it.

bf16: GGUF as `pronghorn convert` writes it; int8: Q8_0; int4: Q4_0, which it re-packs for the processor;
both made by its own quantizer. Context in fp16, flash attention and batch sizes as it chooses.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp as c
import numpy as np

sys.path.append(str(Path(__file__).resolve().parent))
from _texts import made, tokens

TYPES = {"int8": c.LLAMA_FTYPE_MOSTLY_Q8_0, "int4": c.LLAMA_FTYPE_MOSTLY_Q4_0}
ROOM = 256  # tokens of a sequence beyond the context that was asked for


class Driver:
    def __init__(self) -> None:
        self.ctx: Any = None
        self.kind: tuple[int, int] = (0, 0)
        self.filled: tuple[int, int] = (0, 0)  # sequences and tokens of each that lie in the context

    def prepare(self, model: str, precision: str, cache: str) -> str:
        home = Path(cache) / "llama.cpp"
        plain = made(home / "bf16.gguf", lambda to: _convert(model, to))
        if precision == "bf16":
            return str(plain)
        if precision not in TYPES:
            raise NotImplementedError(f"no form for {precision}")
        return str(made(home / f"{precision}.gguf", lambda to: _quantize(plain, to, TYPES[precision])))

    def load(self, model: str, use: list[str], precision: str, threads: int, cache: str) -> dict[str, Any]:
        path = self.prepare(model, precision, cache)
        self.threads = threads
        c.llama_backend_init()
        self.model = c.llama_model_load_from_file(path.encode(), c.llama_model_default_params())
        if not self.model:
            raise ValueError(f"llama.cpp does not load {path}")
        self.n_vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        self._room(1, 512)
        return {"version": c.__version__}

    def prefill(self, n: int) -> float:
        self._room(1, n)
        self._clear()
        ids = tokens(n, self.n_vocab, n)
        start = time.perf_counter()
        self._run([(t, i, 0) for i, t in enumerate(ids)], {n - 1})
        self._best(-1)
        return time.perf_counter() - start

    def decode(self, batch: int, context: int, tokens: int) -> float:
        self._fill(batch, context)
        last = [1] * batch
        for i in range(tokens + 1):
            if i == 1:
                start = time.perf_counter()
            self._run([(t, context + i, s) for s, t in enumerate(last)], set(range(batch)))
            last = [self._best(s) for s in range(batch)]
        return (time.perf_counter() - start) / tokens

    def rows(self, n: int, context: int, repeat: int) -> float:
        self._fill(1, context)
        rows = [(t, context + i, 0) for i, t in enumerate(tokens(n, self.n_vocab, n))]
        total = 0.0
        for i in range(repeat + 1):
            start = time.perf_counter()
            self._run(rows, set(range(n)))
            if i:
                total += time.perf_counter() - start
            c.llama_memory_seq_rm(c.llama_get_memory(self.ctx), 0, context, -1)
        return total / repeat

    # ------------------------------------------------------------------ inside

    def _room(self, n_seq: int, n: int) -> None:
        """A context for so many sequences of n tokens each."""
        if self.ctx is not None and n_seq == self.kind[0] and n <= self.kind[1]:
            return
        if self.ctx is not None:
            c.llama_free(self.ctx)
        p = c.llama_context_default_params()
        p.n_ctx = n_seq * (n + ROOM)
        p.n_batch = 2048
        p.n_seq_max = n_seq
        p.n_threads = p.n_threads_batch = self.threads
        self.ctx = c.llama_init_from_model(self.model, p)
        if not self.ctx:
            raise MemoryError("llama.cpp makes no context of this size")
        self.kind, self.filled = (n_seq, n), (0, 0)

    def _clear(self) -> None:
        c.llama_memory_clear(c.llama_get_memory(self.ctx), True)
        self.filled = (0, 0)

    def _fill(self, n_seq: int, n: int) -> None:
        """n tokens in each of n_seq sequences, and nothing more."""
        self._room(n_seq, n)
        if self.filled != (n_seq, n):
            self._clear()
            for s in range(n_seq):
                self._run([(t, i, s) for i, t in enumerate(tokens(n, self.n_vocab, s))], {n - 1})
            self.filled = (n_seq, n)
        for s in range(n_seq):
            c.llama_memory_seq_rm(c.llama_get_memory(self.ctx), s, n, -1)

    def _run(self, rows: list[tuple[int, int, int]], wanted: set[int]) -> None:
        """rows: token, position, sequence."""
        for at in range(0, len(rows), 2048):
            part = rows[at : at + 2048]
            b = c.llama_batch_init(len(part), 0, 1)
            try:
                b.n_tokens = len(part)
                for i, (token, pos, seq) in enumerate(part):
                    b.token[i], b.pos[i], b.n_seq_id[i] = token, pos, 1
                    b.seq_id[i][0] = seq
                    b.logits[i] = at + i in wanted
                if c.llama_decode(self.ctx, b):
                    raise ValueError("llama_decode failed")
            finally:
                c.llama_batch_free(b)

    def _best(self, row: int) -> int:
        logits = c.llama_get_logits_ith(self.ctx, row)
        return int(np.ctypeslib.as_array(logits, (self.n_vocab,)).argmax())


def _convert(model: str, to: Path) -> None:
    ours = os.environ["PRONGHORN_PYTHON"]
    path = {**os.environ, "PYTHONPATH": os.environ["PRONGHORN_PATH"]}
    file = to.with_suffix(".gguf")
    command = [ours, "-m", "pronghorn.cli.main", "convert", model, str(file), "--dtype", "bf16", "--force"]
    done = subprocess.run(command, env=path, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"conversion to GGUF failed: {done.stderr.strip()[-300:]}")
    if file != to:
        file.rename(to)


def _quantize(source: Path, to: Path, kind: int) -> None:
    p = c.llama_model_quantize_default_params()
    p.ftype = kind
    if c.llama_model_quantize(str(source).encode(), str(to).encode(), ctypes.byref(p)):
        raise ValueError("llama.cpp could not quantize the model")
