"""TokenSelect (Wu et al., 2024, arXiv 2411.02886): heads vote on the rows to read.

Every key is scored; each query head spreads one vote over the pages by the softmax of its scores, and the
pages with the most votes are read, beside the first and the last ones. Departures: votes are counted among
the query heads that share a KV head (in the paper: among all of a layer), as each KV head has rows of its
own, and go to pages, by their best row. The paper reuses a layer's choice while a query resembles the last
one that chose. What the last query was depends on how a text was cut into steps, on drafts that fell and
on states that were shared; here every row chooses for itself, so that nothing changes a text. That costs
the reading of all keys, half of what dense attention reads. Prompts are not extrapolated. Rows of the
prompt select by their own queries instead of a chunk's mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pronghorn.kv.layout import PAGE
from pronghorn.methods.select import _pages
from pronghorn.types import Array, Choice, Field, Guarantee, Traits


@dataclass(frozen=True)
class TokenSelect(_pages.Pages):
    tokens: int = 2048  # rows that are voted for, in whole pages
    start: int = 128  # first rows, read beside them
    recent: int = 512  # last sealed rows, read beside them
    dense_layers: int = 0  # first layers, which are read whole

    traits = Traits(Guarantee.APPROXIMATE)

    def __post_init__(self) -> None:
        _pages.at_least(
            "tokenselect", tokens=(self.tokens, 1), start=(self.start, 0), recent=(self.recent, 0),
            dense_layers=(self.dense_layers, 0),
        )  # fmt: skip

    @property
    def choice(self) -> Choice:
        first, last = -(-self.start // PAGE), -(-self.recent // PAGE)
        return Choice("keys", _pages.whole(self.tokens) + first + last, "vote", first, last)

    def sources(self, n_layers: int) -> Sequence[int]:
        return _pages.own_from(self.dense_layers, n_layers)

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return ()

    def index(self, k: Array, valid: Array, ops: Any) -> dict[str, Array]:
        return {}
