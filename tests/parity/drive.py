"""Feeds rows to a runner directly, as the engine would: ragged prompts in chunks, then greedy tokens.

It depends on the store and the runner only, so that a parity failure is one of the model.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pronghorn.kv.store import SeqKV, Store
from pronghorn.model.arch import build_tape
from pronghorn.model.bind import Bound, bind
from pronghorn.model.checkpoint import load_checkpoint, validate
from pronghorn.model.tape import Tape
from pronghorn.nulls import Dense, ExactKV
from pronghorn.ops.ref import Ops
from pronghorn.run.base import Runner
from pronghorn.run.ref import RefRunner
from pronghorn.types import Rows

WHOLE = 1 << 30


@dataclass
class Trace:
    """What one prompt gave: logits (n_prompt + n_new - 1, n_vocab) of every row that was run, and the
    greedy tokens."""

    logits: NDArray[Any]
    tokens: list[int]


def same(tape: Tape) -> Tape:
    return tape


def load(folder: Path, change: Callable[[Tape], Tape] = same) -> Bound:
    """A checkpoint folder, bound with its weights as stored. change: what to do to the tape before that."""
    checkpoint = load_checkpoint(folder)
    tape = build_tape(checkpoint.config)
    validate(checkpoint, tape.expected())
    return bind(change(tape), checkpoint.tensors)


def store_for(bound: Bound, ops: Ops, open_dtype: str) -> Store:
    return Store(
        ops, bound.n_layers, bound.n_kv, bound.head_dim, open_dtype, ExactKV(), Dense(), "seq",
        list(bound.kv_ropes),
    )  # fmt: skip


def runner_for(bound: Bound, kind: str, threads: int = 1) -> tuple[Runner, Store]:
    """kind: "numpy32", "numpy64", "torch" or "native"; skips the test where the native one is not built.

    threads: of the native runner; one is the fastest for models this small.
    """
    if kind == "native":
        if importlib.util.find_spec("pronghorn.ops.cpu._native") is None:
            pytest.skip("the native extension is not built here (make native)")
        from pronghorn.run.native import NativeRunner

        store = store_for(bound, Ops("float32"), "float32")
        native: Runner = NativeRunner(bound, store, threads)
        return native, store
    if kind == "torch":
        import torch

        ops = Ops("float32", torch)
    else:
        ops = Ops("float64" if kind == "numpy64" else "float32")
    store = store_for(bound, ops, ops.name)
    return RefRunner(bound, store), store


def step_rows(parts: Sequence[tuple[int, Sequence[int], int, int]]) -> Rows:
    """Rows of chains: (sequence, token ids, first position, prompt length), every row wanted."""
    ids, pos, span, seq, parent = [], [], [], [], []
    for s, tokens, start, n_prompt in parts:
        for j, token in enumerate(tokens):
            parent.append(len(ids) - 1 if j else -1)
            ids.append(token)
            pos.append(start + j)
            span.append(max(n_prompt, start + j + 1))
            seq.append(s)
    columns = (np.array(c, np.int32) for c in (ids, pos, span, seq, parent, [1] * len(ids)))
    return Rows(*columns)


def commit(runner: Runner, store: Store, kv: SeqKV, rows: Rows, at: NDArray[Any]) -> None:
    """Rows `at` of the last step, a chain of one sequence, become its next open rows."""
    addr, block, slot = store.reserve(kv, len(at))
    runner.commit(at.astype(np.int32), addr, block, slot)
    store.extend(kv, rows.pos[at])


def greedy(
    runner: Runner, store: Store, prompts: Sequence[Sequence[int]], n_new: int, chunk: int = WHOLE
) -> list[Trace]:
    """All prompts in the same steps. A prompt is run `chunk` rows at a time, so that short prompts
    decode while long ones are still being read; each then decodes until it has `n_new` tokens."""
    kvs = [store.new() for _ in prompts]
    ends = [len(p) + n_new - 1 for p in prompts]  # the last token's row is not run
    tokens = [list(p) for p in prompts]
    logits: list[list[NDArray[Any]]] = [[] for _ in prompts]
    try:
        while any(kv.length < end for kv, end in zip(kvs, ends, strict=True)):
            parts = []
            for s, kv in enumerate(kvs):
                start = kv.length
                if start < ends[s]:
                    part = tokens[s][start : start + min(chunk, len(prompts[s]))]
                    parts.append((s, part, start, len(prompts[s])))
            rows = step_rows(parts)
            out = runner.run(rows, kvs, False).logits
            for s, part, start, n_prompt in parts:
                at = np.flatnonzero(rows.seq == s)
                commit(runner, store, kvs[s], rows, at)
                logits[s].append(np.array(out[at]))
                if start + len(part) >= n_prompt:
                    tokens[s].append(int(np.argmax(out[at[-1]])))
    finally:
        for kv in kvs:
            kv.free()
    return [Trace(np.concatenate(x), t[len(p) :]) for x, t, p in zip(logits, tokens, prompts, strict=True)]
