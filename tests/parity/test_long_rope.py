"""The one place where Hugging Face's `generate` and its own forward pass part ways.

A longrope text that grows past `original_max_position_embeddings` while it is generated changes its
rotary table. The forward pass with a cache leaves the stored keys as they are, and so does Pronghorn: a
key is rotated once. `generate` (of Phi-3 alone) throws the cache away at that step and runs the whole
text again, once. Texts that cross nothing are the same for all three.
"""

from __future__ import annotations

import drive
import numpy as np
import pytest
import reference
import tiny
import torch
from transformers import AutoModelForCausalLM

PROMPT = np.random.default_rng(3).integers(0, tiny.VOCAB, 240).tolist()
N_NEW = 40
CROSSING = 257 - 240  # the new token whose row is the 257th: the first with the long factors


@pytest.fixture(scope="module")
def folder():
    return tiny.checkpoint("phi3-longrope")


@pytest.mark.parametrize("chunk", [64, drive.WHOLE])
@pytest.mark.parametrize("kind", ["numpy32", "torch", "native"])
def test_a_text_that_crosses_equals_the_cached_forward_pass(folder, kind, chunk):
    [want] = reference.greedy(folder, [PROMPT], N_NEW)
    runner, store = drive.runner_for(drive.load(folder), kind)
    [have] = drive.greedy(runner, store, [PROMPT], N_NEW, chunk)
    assert have.tokens == want.tokens
    assert np.abs(have.logits - want.logits).max() <= 1e-4


def test_generate_differs_from_the_crossing_on_and_not_before(folder):
    [cached] = reference.greedy(folder, [PROMPT], N_NEW)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([PROMPT])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=N_NEW, do_sample=False, eos_token_id=None,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    generated = torch.cat(out.logits).numpy()
    gap = np.abs(generated[: CROSSING + 1] - cached.logits[-N_NEW:][: CROSSING + 1]).max(-1)
    assert gap[:CROSSING].max() <= 1e-4
    assert gap[CROSSING] > 1e-2
