"""Scissorhands (Liu et al., 2023, arXiv 2305.17118): what was not important lately will not be.

A row is unimportant to a query that gives it less than an equal part of its attention. Each KV head
counts, of the last `history` queries, how many found a row unimportant, and drops those with the largest
counts; of equal ones the later. The last `recent` rows always stay.

The paper's abstract gives no formulas; these follow its algorithm 2. Departures: weights are averaged over
the query heads of a KV head before they are counted; an equal part is one over the rows that the query
sees, which after drops are fewer than its position; rows are dropped in batches at barriers; counts are
kept by halves of the history, so that they cover between half of it and all of it; and all layers have the
same budget (the paper gives later ones more: wrap it in another policy for that).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.kv.look import BLOCK
from pronghorn.kv.view import KVView, Scored
from pronghorn.methods._options import at_least
from pronghorn.methods.kv._grid import AtGrid
from pronghorn.methods.kv._seen import sees
from pronghorn.types import Guarantee, KVPlan, Traits

NOW, BEFORE = "scissorhands.now", "scissorhands.before"  # counts in this part of the text and in the last


@dataclass(frozen=True)
class Scissorhands(AtGrid):
    budget: int = 1024  # rows that each head keeps
    history: int = 400  # last queries that count
    recent: int = 10  # last rows that always stay
    every: int = 64  # tokens between drops in the answer
    prompt_every: int = 512  # tokens between drops inside the prompt

    traits = Traits(Guarantee.APPROXIMATE, taps=("q.new",), rows="head", drops=True, notes=(NOW, BEFORE))

    def __post_init__(self) -> None:
        at_least("scissorhands", self, budget=1, history=2, recent=0, every=1, prompt_every=1)

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        return view.plan(self.score(view, taps))

    def score(self, view: KVView, taps: dict[str, NDArray[Any]]) -> Scored:
        part = taps["q_at"] // (self.history // 2)  # of the text, for each query
        this = (view.length - 1) // (self.history // 2)
        seen = (int(taps["q_at"][0]) - 1) // (self.history // 2)  # where the notes end
        now, before = np.zeros(view.valid.shape, np.float32), np.zeros(view.valid.shape, np.float32)
        if seen == this:
            now, before = view.note(NOW), view.note(BEFORE)
        elif seen == this - 1:
            before = view.note(NOW)
        for layer, q in enumerate(taps["q"]):
            for count, which in ((now, this), (before, this - 1)):
                mine = np.flatnonzero(part == which)
                for i in range(0, len(mine), BLOCK):
                    some = mine[i : i + BLOCK]
                    count[layer] += self._unimportant(view, layer, q[:, some], taps["q_pos"][some])
        return Scored(-(now + before), view.last(self.recent), self.budget, {NOW: now, BEFORE: before})

    def _unimportant(self, view: KVView, layer: int, q: NDArray[Any], pos: NDArray[np.int32]) -> NDArray[Any]:
        """(H, n): how many of the queries give a row less than an equal part, of those that come after it."""
        weight = view.by_kv_head(view.weights(layer, q, pos))  # (H, r, n)
        after = view.valid[layer][:, None] & (view.pos[layer][:, None] <= pos[:, None])
        # a hair below one: where weights are equal, their last bits decide nothing
        less = after & (weight * sees(view, layer, pos).sum(axis=-1, keepdims=True) < 1 - 1e-4)
        return np.asarray(less.sum(axis=1))
