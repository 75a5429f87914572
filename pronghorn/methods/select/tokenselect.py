"""TokenSelect (Wu et al., 2024, arXiv 2411.02886): heads vote on the rows to read.

Every key is scored; each query head spreads one vote over the pages by the softmax of its scores, and the
pages with the most votes are read, beside the first and the last ones. A row of an answer whose queries in
a layer resemble those of the row that chose first behind the last barrier takes over its choice.
Departures: votes are counted among the query heads that share a KV head (in the paper: among all of a
layer), as each KV head has rows of its own, and go to pages, by their best row. The paper compares a query
with the last one that chose, whenever that was; which one that is would depend here on drafts that fell
and on how a text was cut into steps, so it is always the first behind a barrier (64 tokens apart), and a
row that is not like it chooses for itself. Prompts are not extrapolated. Rows of the prompt choose for
themselves instead of by their chunk's mean. Choosing reads all keys, half of what dense attention reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronghorn.kv.layout import PAGE
from pronghorn.methods._options import at_least
from pronghorn.methods.select import _pages
from pronghorn.types import Array, Choice, Field, Guarantee, Traits


@dataclass(frozen=True)
class TokenSelect(_pages.Pages):
    tokens: int = 2048  # rows that are voted for, in whole pages
    start: int = 128  # first rows, read beside them
    recent: int = 512  # last sealed rows, read beside them
    reuse_from: float = 0.9  # cosine of queries from which a choice is taken over; 1: never
    dense_layers: int = 0  # first layers, which are read whole

    traits = Traits(Guarantee.APPROXIMATE)

    def __post_init__(self) -> None:
        at_least("tokenselect", self, tokens=1, start=0, recent=0, dense_layers=0)
        _pages.cosine("tokenselect", reuse_from=self.reuse_from)

    @property
    def choice(self) -> Choice:
        first, last = -(-self.start // PAGE), -(-self.recent // PAGE)
        pages = _pages.whole(self.tokens) + first + last
        return Choice("keys", pages, "vote", first, last, keep="own", like=self.reuse_from)

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return ()

    def index(self, k: Array, valid: Array, ops: Any) -> dict[str, Array]:
        return {}
