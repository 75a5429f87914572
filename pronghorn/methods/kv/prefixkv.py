"""PrefixKV (Wang et al., 2024, arXiv 2412.03409): layers keep the same share of attention.

Rows of a layer are put in order of the attention that they were given in sum, averaged over heads; each layer
keeps the shortest beginning of that order that holds a share p of all of it. One p for all layers is found by
binary search, so that all of them together keep `budget` rows a layer in the mean: layers that attend to few
rows give theirs to those that attend to many. The first `sinks` rows and the last `window` always stay and
come first in the order. Heads of a layer keep the same rows.

Departures: the paper searches p on a few samples beforehand and lays budgets down as a table; here it is
searched at every barrier, on the text itself, and the rows of the answer are treated as those of the prompt,
where the paper drops one at a fixed place. Rows are dropped in batches. Sums favour early rows, as in the
paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.kv.view import KVView, Scored, rounded
from pronghorn.methods._options import at_least
from pronghorn.methods.kv._grid import AtGrid
from pronghorn.types import Guarantee, Ints, KVPlan, Traits

SUM = "prefixkv.sum"
HALVINGS = 40  # of p: more than two sums of attention are ever apart


@dataclass(frozen=True)
class PrefixKv(AtGrid):
    budget: int = 1024  # rows that a layer keeps, in the mean of layers
    sinks: int = 4  # first rows that always stay
    window: int = 32  # last rows that always stay
    every: int = 64  # tokens between drops in the answer
    prompt_every: int = 512  # tokens between drops inside the prompt

    traits = Traits(Guarantee.APPROXIMATE, taps=("q.new",), rows="layer", drops=True, notes=(SUM,))

    def __post_init__(self) -> None:
        at_least("prefixkv", self, sinks=0, window=1, every=1, prompt_every=1)
        if self.budget < self.sinks + self.window:
            raise MethodError(
                f"prefixkv: budget is {self.sinks + self.window} or above, the rows that always stay, not "
                f"{self.budget}"
            )

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        return view.plan(self.score(view, taps))

    def score(self, view: KVView, taps: dict[str, NDArray[Any]]) -> Scored:
        total = view.total(SUM, taps)
        always = view.valid & (view.last(self.window) | (np.arange(view.n) < self.sinks))
        score = rounded(total.mean(axis=1))  # (L, n)
        budgets = self._budgets(score, always[:, 0], view.valid[:, 0])
        return Scored(np.repeat(score[:, None], view.n_kv, axis=1), always, budgets[:, None], {SUM: total})

    def _budgets(self, score: NDArray[Any], always: NDArray[np.bool_], valid: NDArray[np.bool_]) -> Ints:
        """(L,) of scores (L, n)."""
        there = valid.sum(axis=1)
        room = self.budget * len(score)
        if there.sum() <= room:
            return np.asarray(there, np.int32)
        order = np.sort(np.where(valid & ~always, score, -1.0), axis=1)[:, ::-1]
        held = np.cumsum(np.maximum(order, 0.0), axis=1)
        first = np.where(always & valid, score, 0.0).sum(axis=1)
        whole = np.maximum(held[:, -1:] + first[:, None], 1e-30)
        share = (held + first[:, None]) / whole  # of the rows that always stay and the first k + 1 others
        least = (always & valid).sum(axis=1)

        def keep(p: float) -> Ints:
            others = np.where(first / whole[:, 0] >= p, 0, 1 + (share < p).sum(axis=1))
            rows: Ints = np.minimum(least + others, there)
            return rows

        low, high = 0.0, 1.0  # low fits; high does not, or is all that is ever needed
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if keep(middle).sum() <= room else (low, middle)
        return keep(1.0 if keep(1.0).sum() <= room else low)
