"""DuoAttention (Xiao et al., 2024, arXiv 2410.10819): retrieval heads and streaming heads.

Retrieval heads keep every row, streaming heads the first `sinks` and the last `window`. Nothing of the text
decides, so a prompt's rows are the same whatever is asked of it. Departures: the paper trains a gate for each
head; here retrieval heads are the `share` of KV heads that attend most to text that repeats, by a table that
`pronghorn calibrate heads` makes, or those named by `heads` (layer times KV heads plus head), where trained
gates can be given. Without either every head streams. Rows keep their positions, and are dropped in batches
at barriers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.kv.view import KVView
from pronghorn.methods._options import at_least
from pronghorn.methods.kv._grid import AtGrid
from pronghorn.methods.kv._heads import check, retrieving
from pronghorn.types import Guarantee, KVPlan, Traits


@dataclass(frozen=True)
class DuoAttention(AtGrid):
    heads: tuple[int, ...] = ()  # retrieval heads: layer * (KV heads) + head
    table: str = ""  # file of `pronghorn calibrate heads` that finds them instead
    share: float = 0.5  # of the heads in a table that are retrieval heads
    sinks: int = 64  # first rows that stay in streaming heads
    window: int = 256  # last rows that stay in them
    every: int = 64  # tokens between drops in the answer
    prompt_every: int = 512  # tokens between drops inside the prompt

    def __post_init__(self) -> None:
        at_least("duo-attention", self, sinks=0, window=1, every=1, prompt_every=1)
        check("duo-attention", self.heads, self.table, self.share)

    @property
    def traits(self) -> Traits:
        tables = (self.table,) if self.table else ()
        return Traits(Guarantee.APPROXIMATE, rows="head", drops=True, tables=tables)

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        whole = retrieving(view, self.heads, self.table, self.share)
        stays = whole[..., None] | view.last(self.window) | (np.arange(view.n) < self.sinks)
        if stays[view.valid].all():
            return None
        return view.keep_where(stays & view.valid)
