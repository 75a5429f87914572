"""H2O (Zhang et al., 2023, arXiv 2306.14048): heavy hitters and recent rows.

Each KV head keeps `budget` rows: the last half of them, and of the others those to which all queries so far
gave most attention in sum. What a row was given is noted beside it and grows as queries come, those of the
prompt included; a row that was dropped never returns. Departures: rows are dropped in batches at barriers and
not at every token, so that up to `every` rows more are held (`prompt_every` inside the prompt), and queries
between two barriers see all of them; scores are averaged over the query heads that share a KV head (the paper
has one each). Sums favour early rows, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from pronghorn.kv.view import KVView, Scored, rounded
from pronghorn.methods._options import at_least
from pronghorn.methods.kv._grid import AtGrid
from pronghorn.types import Guarantee, KVPlan, Traits

SUM = "h2o.sum"


@dataclass(frozen=True)
class H2O(AtGrid):
    budget: int = 1024  # rows that each head keeps, half of them the latest
    every: int = 64  # tokens between drops in the answer
    prompt_every: int = 512  # tokens between drops inside the prompt

    traits = Traits(Guarantee.APPROXIMATE, taps=("q.new",), rows="head", drops=True, notes=(SUM,))

    def __post_init__(self) -> None:
        at_least("h2o", self, budget=2, every=1, prompt_every=1)

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        return view.plan(self.score(view, taps))

    def score(self, view: KVView, taps: dict[str, NDArray[Any]]) -> Scored:
        total = view.total(SUM, taps)
        return Scored(rounded(total), view.last(self.budget - self.budget // 2), self.budget, {SUM: total})
