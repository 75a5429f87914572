"""Every architecture against transformers: logits of every row, and 64 greedy tokens.

Prompts of 1, 7 and 300 tokens run in the same steps, so that the short ones decode while the long one is
still being read. One token at a time (chunk 1) takes 300 steps: the reference runners do it on the
shapes of `STEPWISE`, which differ in what attention sees; the native runner does it on all.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import drive
import numpy as np
import pytest
import reference
import tiny

from pronghorn.model.bind import Bound

TOLERANCE = 1e-4
N_NEW = 64
PROMPTS = [
    np.random.default_rng(7).integers(0, tiny.VOCAB, n).tolist() for n in (1, 7, 300)
]  # fmt: skip
STEPWISE = ["llama-gqa", "llama-dynamic", "phi3-longrope", "gemma3-pattern", "gpt2-tied"]
CASES = [
    *[(s, "numpy32", c) for s in tiny.SHAPES for c in (16, 64, drive.WHOLE)],
    *[(s, "numpy32", 1) for s in STEPWISE],
    *[(s, "numpy64", c) for s in tiny.SHAPES for c in (16, drive.WHOLE)],
    *[(s, "torch", c) for s in tiny.SHAPES for c in (64, drive.WHOLE)],
    *[(s, "torch", c) for s in STEPWISE for c in (1, 16)],
    *[(s, "native", c) for s in tiny.SHAPES for c in (1, 16, 64, drive.WHOLE)],
]


@cache
def expected(shape: str) -> list[drive.Trace]:
    return reference.greedy(tiny.checkpoint(shape), PROMPTS, N_NEW)


@cache
def bound(shape: str) -> Bound:
    return drive.load(tiny.checkpoint(shape))


def skip_without_native() -> None:
    for module in ("pronghorn.run.native", "pronghorn.ops.cpu._native"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not built here")


def case_name(case: tuple[str, str, int]) -> str:
    shape, kind, chunk = case
    return f"{shape}-{kind}-{'whole' if chunk == drive.WHOLE else chunk}"


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_logits_and_greedy_tokens(case):
    shape, kind, chunk = case
    if kind == "native":
        skip_without_native()
    runner, store = drive.runner_for(bound(shape), kind)
    got = drive.greedy(runner, store, PROMPTS, N_NEW, chunk)
    for want, have in zip(expected(shape), got, strict=True):
        assert have.tokens == want.tokens
        assert np.abs(have.logits - want.logits).max() <= TOLERANCE
    assert store.held == 0  # every page went back


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_the_reference_is_a_fair_one(shape):
    """No near ties, so tokens must agree when logits do; texts that vary; logits of natural size."""
    traces = expected(shape)
    for trace in traces:
        best = np.sort(trace.logits[-N_NEW:], axis=-1)[:, -2:]
        assert (best[:, 1] - best[:, 0]).min() > 2 * TOLERANCE
        assert 0.5 < trace.logits.std() < 5
    assert len({token for trace in traces for token in trace.tokens}) >= 20


def test_a_chunk_of_one_is_one_row_per_step():
    """The driver's chunks are what the tests above say they are."""
    steps = []

    class Spy:
        def __init__(self, inner):
            self.inner = inner
            self.ops = inner.ops
            self.commit = inner.commit

        def run(self, rows, kvs, taps):
            steps.append(np.bincount(rows.seq, minlength=len(kvs)).tolist())
            return self.inner.run(rows, kvs, taps)

    runner, store = drive.runner_for(bound("llama-gqa"), "numpy32")
    drive.greedy(Spy(runner), store, [[5, 6, 7], [8]], 2, 1)
    assert steps == [[1, 1], [1, 1], [1, 0], [1, 0]]
    steps.clear()
    drive.greedy(Spy(runner), store, [[5, 6, 7], [8]], 2, 2)
    assert steps == [[2, 1], [1, 1], [1, 0]]
