"""RazorAttention (Tang et al., 2024, arXiv 2407.15891): whole cache for some heads, a summary for the others.

Retrieval heads keep every row. The others keep the first `sinks` rows and the last `window`, and between them
one row for all that were dropped: the means of their keys and values, which counts in attention as many times
as rows went into it (their logarithm is added to its score). Where all dropped keys are equal, nothing is
lost. Departures: rows are dropped in batches at barriers; the row lies at the position of the first dropped
one and its keys are averaged as they are stored, rotated.

Retrieval heads are the `share` of heads that attend most to text that repeats, by a table that `pronghorn
calibrate heads` makes (paper: 14 % by induction and 1 % by echo of query heads; here of KV heads, each by the
best of its query heads), or those named by `heads` (layer times KV heads plus head). Without either no head
retrieves.
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
from pronghorn.types import BIAS, Guarantee, KVPlan, Traits

COUNT = "razor.count"


@dataclass(frozen=True)
class RazorAttention(AtGrid):
    heads: tuple[int, ...] = ()  # retrieval heads: layer * (KV heads) + head
    table: str = ""  # file of `pronghorn calibrate heads` that finds them instead
    share: float = 0.15  # of the heads in a table that are retrieval heads
    sinks: int = 4  # first rows that always stay
    window: int = 1024  # last rows that stay
    every: int = 64  # tokens between drops in the answer
    prompt_every: int = 2048  # tokens between drops inside the prompt

    def __post_init__(self) -> None:
        at_least("razor-attention", self, sinks=0, window=1, every=1, prompt_every=1)
        check("razor-attention", self.heads, self.table, self.share)

    @property
    def traits(self) -> Traits:
        tables = (self.table,) if self.table else ()
        return Traits(Guarantee.APPROXIMATE, rows="head", drops=True, notes=(COUNT, BIAS), tables=tables)

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        first = np.arange(view.n) < self.sinks
        retrieves = retrieving(view, self.heads, self.table, self.share)
        gone = view.valid & ~first & ~view.last(self.window) & ~retrieves[..., None]
        if not (gone.sum(axis=-1) > 1).any():
            return None
        k, v = view.k.copy(), view.v.copy()
        count, bias = view.note(COUNT), view.note(BIAS)
        for at in np.ndindex(view.n_layers, view.n_kv):
            rows = np.flatnonzero(gone[at])
            if len(rows) < 2:
                continue
            many = np.maximum(count[at][rows], 1)[:, None]
            one, total = rows[0], many.sum()
            for a in (k, v):
                a[at][one] = (many * a[at][rows]).sum(axis=0) / total
            count[at][one], bias[at][one] = total, np.log(total)
        summary = gone & (np.arange(view.n) == self.sinks)
        plan = view.keep_where(view.valid & (~gone | summary))
        plan.notes.update({COUNT: count, BIAS: bias})
        return view.rewrite(plan, k, v, summary)
