"""Every architecture against transformers: logits of every row, and 64 greedy tokens.

Prompts of 1, 7 and 300 tokens run in the same steps, so that the short ones decode while the long one is
still being read. One token at a time takes 363 steps: the reference runners do it on `STEPWISE` alone, the
first shape of each architecture and the two whose rotary table changes with the length. The float64
runner, which is slow, is the oracle of the others: it takes each prompt whole.
"""

from __future__ import annotations

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
CHUNKS = (1, 16, 64, drive.WHOLE)
FIRST = {architecture: shape for shape, (architecture, _) in reversed(tiny.SHAPES.items())}
STEPWISE = [*FIRST.values(), "llama-dynamic", "phi3-longrope"]
CASES = [
    *[(s, kind, c) for kind in ("numpy32", "torch") for s in tiny.SHAPES for c in CHUNKS[1:]],
    *[(s, kind, 1) for kind in ("numpy32", "torch") for s in STEPWISE],
    *[(s, "numpy64", drive.WHOLE) for s in tiny.SHAPES],
    *[(s, "native", c) for s in tiny.SHAPES for c in CHUNKS],
]


@cache
def expected(shape: str) -> list[drive.Trace]:
    return reference.greedy(tiny.checkpoint(shape), PROMPTS, N_NEW)


@cache
def bound(shape: str) -> Bound:
    return drive.load(tiny.checkpoint(shape))


def case_name(case: tuple[str, str, int]) -> str:
    shape, kind, chunk = case
    return f"{shape}-{kind}-{'whole' if chunk == drive.WHOLE else chunk}"


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_logits_and_greedy_tokens(case):
    shape, kind, chunk = case
    runner, store = drive.runner_for(bound(shape), kind)
    got = drive.greedy(runner, store, PROMPTS, N_NEW, chunk)
    for want, have in zip(expected(shape), got, strict=True):
        assert have.tokens == want.tokens
        assert np.abs(have.logits - want.logits).max() <= TOLERANCE
    assert store.held == 0  # every page went back


@pytest.mark.parametrize("shape", FIRST.values())
def test_native_threads_do_not_show(shape):
    """Two threads give the bits of one."""
    traces = []
    for threads in (1, 2):
        runner, store = drive.runner_for(bound(shape), "native", threads)
        traces.append(drive.greedy(runner, store, PROMPTS, 16, 64))
    for one, two in zip(*traces, strict=True):
        np.testing.assert_array_equal(one.logits, two.logits)


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
