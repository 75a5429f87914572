"""Other ways to hold the same weights: bfloat16 files, and tapes whose tensors are made in memory."""

from __future__ import annotations

import drive
import numpy as np
import pytest
import reference
import tiny

from pronghorn.model.bind import bind

PROMPTS = [np.random.default_rng(9).integers(0, tiny.VOCAB, n).tolist() for n in (3, 70)]


@pytest.mark.parametrize("shape", ["llama-mha-tied", "gemma2-gqa", "gpt2-tied", "mixtral-gqa", "phi3-gqa"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files_are_widened_exactly(shape, dtype):
    """Transformers widens the stored weights to float32, and so does the reference runner."""
    folder = tiny.checkpoint(shape, dtype)
    want = reference.greedy(folder, PROMPTS, 8)
    runner, store = drive.runner_for(drive.load(folder), "numpy32")
    for a, b in zip(want, drive.greedy(runner, store, PROMPTS, 8, 16), strict=True):
        assert a.tokens == b.tokens
        assert np.abs(a.logits - b.logits).max() <= 1e-4


@pytest.mark.parametrize(
    "changes", [{}, {"model_type": "mixtral", "num_experts": 4, "num_experts_per_tok": 2}]
)
def test_a_tape_without_a_checkpoint_runs(changes):
    tape, tensors = tiny.tape_model(**changes)
    runner, store = drive.runner_for(bind(tape, tensors), "numpy64")
    whole, single = (drive.greedy(runner, store, PROMPTS, 6, c) for c in (drive.WHOLE, 1))
    for a, b in zip(whole, single, strict=True):
        assert a.tokens == b.tokens
        np.testing.assert_allclose(a.logits, b.logits, atol=1e-6)
        assert a.logits.std() > 0.5
