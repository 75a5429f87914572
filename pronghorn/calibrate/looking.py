"""What looks at a model while it reads: policies that keep every row."""

from __future__ import annotations

from pronghorn.fingerprint import of_model
from pronghorn.llm import LLM
from pronghorn.types import FOREVER, Guarantee, Traits

EVERY = 512  # rows between two looks


class Looks:
    """Is shown the queries of a prompt, every few rows and at its end."""

    slot = "kv"
    traits = Traits(Guarantee.EXACT, taps=("q.new",))

    def barrier(self, n_prompt: int, length: int) -> int:
        return min((length // EVERY + 1) * EVERY, n_prompt) if length < n_prompt else FOREVER


def mark(llm: LLM) -> str:
    """`fingerprint.of_model` of what `llm` runs."""
    return of_model(llm.checkpoint, llm.methods.gate.skips(llm.facts.n_layers))
