"""Elastic Cache (Liu et al., 2024, arXiv 2407.18121): the prompt's rows merge into anchors.

Inside the prompt the rows of a layer that were given most attention, summed over all queries and averaged
over heads, are anchors, the first `sinks` and the last among them; each other row joins the anchor nearest by
position (the earlier of two), and an anchor becomes the mean of itself and what joined it, keys and values.
In the answer, whenever there is a row too many, the one that lies `window` rows from the end is dropped: the
anchors before it and the latest rows stay. All heads of a layer keep the same rows.

Departures: a number of rows in place of a ratio of the text; rows are treated in batches at barriers, a long
prompt in parts, with means that count a row as often as rows went into it; keys are averaged as they are
stored, rotated. With `merge=false` rows that are no anchors are dropped, which is what the paper compares
with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.kv.view import KVView, rounded
from pronghorn.methods._options import at_least
from pronghorn.methods.kv._grid import AtGrid
from pronghorn.types import Guarantee, KVPlan, Traits

SUM, COUNT = "elastic.sum", "elastic.count"


@dataclass(frozen=True)
class Elastic(AtGrid):
    budget: int = 1024  # rows that each layer keeps
    sinks: int = 1  # first rows that are always anchors
    window: int = 25  # latest rows that stay in the answer
    merge: bool = True  # rows that are no anchors are merged; else dropped
    every: int = 64  # tokens between drops in the answer
    prompt_every: int = 512  # tokens between merges inside the prompt

    traits = Traits(Guarantee.APPROXIMATE, taps=("q.new",), rows="layer", drops=True, notes=(SUM, COUNT))

    def __post_init__(self) -> None:
        at_least("elastic", self, sinks=0, window=1, every=1, prompt_every=1)
        if self.budget <= max(self.sinks, self.window):
            raise MethodError(f"elastic: budget is above sinks and window, not {self.budget}")

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        if view.length > view.n_prompt:
            if view.n <= self.budget:
                return None
            row = np.arange(view.n)
            return view.keep_where((row < self.budget - self.window) | (row >= view.n - self.window))
        total, count = view.total(SUM, taps), np.maximum(view.note(COUNT), 1)
        if view.n <= self.budget:
            return KVPlan(notes={SUM: total})
        score = rounded(total.mean(axis=1, keepdims=True))
        anchors = (np.arange(view.n) < self.sinks) | view.last(1)
        plan = view.keep_top(score, self.budget, anchors)
        k, v, changed = view.k.copy(), view.v.copy(), np.zeros(view.valid.shape, bool)
        if self.merge:
            kept = view.kept(plan)
            for layer in range(view.n_layers):
                self._merge(
                    k[layer], v[layer], count[layer], kept[layer, 0], view.pos[layer, 0], changed[layer]
                )
        plan.notes.update({SUM: total, COUNT: count})
        return view.rewrite(plan, k, v, changed)

    def _merge(
        self, k: NDArray[Any], v: NDArray[Any], count: NDArray[Any], kept: NDArray[np.bool_],
        pos: NDArray[Any], changed: NDArray[np.bool_],
    ) -> None:  # fmt: skip
        """Merge one layer's rows: k, v (H, n, dim), count (H, n); marks those that change."""
        stay, gone = np.flatnonzero(kept), np.flatnonzero(~kept & (pos >= 0))
        after = np.searchsorted(stay, gone).clip(0, len(stay) - 1)
        before = np.maximum(after - 1, 0)
        nearer = np.abs(pos[stay[before]] - pos[gone]) <= np.abs(pos[stay[after]] - pos[gone])
        into = stay[np.where(nearer, before, after)]
        changed[:, into] = True
        for h, many in enumerate(count[..., None]):
            whole = many.copy()
            np.add.at(whole, into, many[gone])
            for a in (k[h], v[h]):
                mean = many * a
                np.add.at(mean, into, mean[gone])
                a[:] = mean / whole
            many[:] = whole
