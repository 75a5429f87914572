"""Greedy verification (Stern et al., 2018, arXiv 1811.03115; Leviathan et al., 2023, arXiv 2211.17192).

Walk down the draft while a child holds the target's likeliest token; the first such token that no child
holds is the bonus. Any draft, chain or tree, gives the tokens of plain greedy decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

from pronghorn.errors import MethodError
from pronghorn.slots import Target
from pronghorn.types import Accept, Draft, Guarantee, Traits


@dataclass(frozen=True)
class Greedy:
    traits = Traits(Guarantee.EXACT, greedy=True)

    def verify(self, p: Target, draft: Draft) -> Accept:
        if p.temperature != 0:
            raise MethodError(
                f"greedy verifies at temperature 0 only, not {p.temperature:g}: use the verifier match"
            )
        return p.walk(draft)  # at temperature 0 a draw is the argmax
