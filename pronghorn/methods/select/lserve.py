"""LServe (Yang et al., 2025, arXiv 2502.14866): large pages, found by the boxes of their parts.

A query reads runs of `parts` pages; a run's score is the largest bound (see `quest`) of any of its pages,
so that a long run is found by the few rows in it that matter. With parts=1 it is `quest`. The rest of
LServe is other methods here: streaming heads are a policy that keeps sinks and recent rows of some heads
(use `duo-attention` beside this; heads with few rows are then read whole), 8-bit rows are `kvfmt.int8`,
weights are `weight.int4` and its like. Departures: a run's list is not kept for the next four steps, as
drafts and shared prefixes would then change texts; prompts are read by rows like everything else, without
a sparse kernel of their own. Memory rises by the bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

from pronghorn.kv.layout import PAGE
from pronghorn.methods._options import at_least
from pronghorn.methods.select import _pages
from pronghorn.types import Choice, Guarantee, Traits


@dataclass(frozen=True)
class LServe(_pages.Boxes):
    tokens: int = 4096  # sealed rows that a query reads, in whole runs
    parts: int = 4  # pages of 16 rows in a run
    dense_layers: int = 0  # first layers, which are read whole

    traits = Traits(Guarantee.APPROXIMATE)

    def __post_init__(self) -> None:
        at_least("lserve", self, tokens=1, parts=1, dense_layers=0)

    @property
    def choice(self) -> Choice:
        runs = -(-self.tokens // (PAGE * self.parts))
        least = -(-3 // self.parts)  # at least 3 pages, as quest
        return Choice("bounds", max(runs, least) * self.parts, span=self.parts)
