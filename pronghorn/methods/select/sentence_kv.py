"""SentenceKV (Zhu et al., 2025, arXiv 2504.00970): chunks of text are found by their mean key.

A page keeps the mean of its keys, and a query reads the pages whose means it is nearest to, `tokens` rows
in all, the first and the last ones among them. Departures: the paper cuts at punctuation; an index of
pages sees keys and no text, so a chunk is a page of 16 rows here, which is also what a text without
punctuation would come to. The paper compares the mean query of the sentence that is being written. What
came before a row in its sentence is not at hand where rows of many texts, drafts and chunks of prompts run
together, and a mean over those in the same step would let company change a text; so a row goes by its own
query, summed over the query heads that share a KV head. The paper's first stage, SnapKV, is a policy here:
`--use snapkv` beside this. Rows that are not read stay in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronghorn.kv.layout import PAGE
from pronghorn.methods._options import at_least
from pronghorn.methods.select import _pages
from pronghorn.types import Array, Choice, Field, Guarantee, Traits


@dataclass(frozen=True)
class SentenceKV(_pages.Pages):
    tokens: int = 1024  # sealed rows that a query reads, in whole pages
    start: int = 32  # first rows, always among them
    recent: int = 32  # last sealed rows, always among them
    dense_layers: int = 2  # first layers, which are read whole

    traits = Traits(Guarantee.APPROXIMATE)

    def __post_init__(self) -> None:
        at_least("sentence-kv", self, tokens=1, start=0, recent=0, dense_layers=0)

    @property
    def choice(self) -> Choice:
        first, last = -(-self.start // PAGE), -(-self.recent // PAGE)
        return Choice("dots", _pages.whole(self.tokens, first + last + 1), "sum", first, last)

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return (Field("mean", "bfloat16", (1, dim), rows=-1),)

    def index(self, k: Array, valid: Array, ops: Any) -> dict[str, Array]:
        return {"mean": _pages.means(k, ops.to(valid, ops.name)[:, None], ops)}
