"""Where policies act that drop rows as the text grows."""

from __future__ import annotations


def next_drop(n_prompt: int, length: int, prompt_every: int, every: int) -> int:
    """A barrier every `prompt_every` tokens inside the prompt, at its end, and every `every` tokens later."""
    if length < n_prompt:
        return min((length // prompt_every + 1) * prompt_every, n_prompt)
    return (length // every + 1) * every
