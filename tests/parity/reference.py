"""What transformers computes: logits of every row and its greedy continuation, one prompt at a time.

The whole prompt runs in one step and then one token per step with its cache, which is what a rotary
table that depends on the length of the text is defined by.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from drive import Trace
from transformers import AutoModelForCausalLM


def greedy(folder: Path, prompts: Sequence[Sequence[int]], n_new: int) -> list[Trace]:
    """Prompts in rising length: transformers keeps a dynamic rotary table of the longest text so far."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    out = []
    with torch.no_grad():
        for prompt in prompts:
            step = model(torch.tensor([list(prompt)]), use_cache=True)
            logits, tokens = [step.logits[0]], [int(step.logits[0, -1].argmax())]
            while len(tokens) < n_new:
                step = model(
                    torch.tensor([tokens[-1:]]), past_key_values=step.past_key_values, use_cache=True
                )
                logits.append(step.logits[0])
                tokens.append(int(step.logits[0, -1].argmax()))
            out.append(Trace(np.asarray(torch.cat(logits)), tokens))
    return out
