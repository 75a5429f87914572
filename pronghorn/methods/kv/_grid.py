"""Where policies act that drop rows as the text grows."""

from __future__ import annotations


class AtGrid:
    """Acts every `prompt_every` tokens inside the prompt, at its end, and every `every` tokens later."""

    prompt_every: int
    every: int

    def barrier(self, n_prompt: int, length: int) -> int:
        if length < n_prompt:
            return min((length // self.prompt_every + 1) * self.prompt_every, n_prompt)
        return (length // self.every + 1) * self.every
