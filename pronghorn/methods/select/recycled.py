"""Recycled Attention (Xu et al., 2024, arXiv 2411.05787): full attention now and then, and its best rows
in between.

The first row of an answer behind a barrier (64 tokens apart, and at the prompt's end) reads everything and
chooses: its query heads that share a KV head add up the softmax of their scores, and the best pages,
`tokens` rows in all, are kept. Rows up to the next barrier read those, and what is not sealed yet. The
dynamic rule of the paper: a row whose queries in a layer have a cosine below `full_below` with those of
the row that chose reads everything in that layer. Departures: full attention comes at barriers, not every
S tokens, as a choice made anywhere else would depend on drafts and on how a text was cut into steps; a row
that reads everything by the dynamic rule does not choose anew, for the same reason; pages are read whole,
by their best row, instead of rows. Prompts are read whole. Nothing is kept beside the keys but one choice
for each sequence, which cannot leave for a slower tier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronghorn.methods._options import at_least
from pronghorn.methods.select import _pages
from pronghorn.types import Array, Choice, Field, Guarantee, Traits


@dataclass(frozen=True)
class Recycled(_pages.Pages):
    tokens: int = 4096  # sealed rows that a recycling row reads, in whole pages
    full_below: float = 0.8  # cosine of queries below which a row reads everything; -1: never
    dense_layers: int = 0  # first layers, which are read whole

    traits = Traits(Guarantee.APPROXIMATE)

    def __post_init__(self) -> None:
        at_least("recycled", self, tokens=1, dense_layers=0)
        _pages.cosine("recycled", full_below=self.full_below)

    @property
    def choice(self) -> Choice:
        return Choice("keys", _pages.whole(self.tokens), "vote", keep="all", like=self.full_below)

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return ()

    def index(self, k: Array, valid: Array, ops: Any) -> dict[str, Array]:
        return {}
