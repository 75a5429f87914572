"""Key-norm eviction (Devoto et al., 2024, arXiv 2406.11430): keys of small norm are those that get attention.

Each KV head keeps the `budget` rows whose keys have the smallest L2 norm. No query is looked at, so the
same rows are kept whatever is asked later. Departures: the first `sinks` rows and the last `recent` ones
always stay (the paper has neither; 0 turns them off), no layer is left out unless `dense_layers` says so
(the paper leaves the first two of some models alone), and rows are dropped in batches at barriers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.kv.view import KVView, Scored, rounded
from pronghorn.methods._options import at_least
from pronghorn.methods.kv._grid import AtGrid
from pronghorn.types import Guarantee, KVPlan, Traits


@dataclass(frozen=True)
class Knorm(AtGrid):
    budget: int = 1024  # rows that each head keeps
    sinks: int = 4  # first rows that always stay
    recent: int = 8  # last rows that always stay
    dense_layers: int = 0  # first layers that keep all rows
    every: int = 64  # tokens between drops in the answer
    prompt_every: int = 2048  # tokens between drops inside the prompt

    traits = Traits(Guarantee.APPROXIMATE, rows="head", drops=True)

    def __post_init__(self) -> None:
        at_least("knorm", self, budget=1, sinks=0, recent=0, dense_layers=0, every=1, prompt_every=1)

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        return view.plan(self.score(view, taps)) if view.n > self.budget else None

    def score(self, view: KVView, taps: dict[str, NDArray[Any]]) -> Scored:
        always = view.last(self.recent) | (np.arange(view.n) < self.sinks)
        whole = np.arange(view.n_layers)[:, None] < self.dense_layers
        budget = np.where(whole, max(view.n, self.budget), self.budget)
        return Scored(-rounded(np.linalg.norm(view.k, axis=-1)), always, budget)
