"""The control: rows that stay by lot. A policy that does no better has chosen nothing.

A row's lot depends on the request's seed, the layer, the KV head and the row's position alone, so that the
same rows stay in any company, and whatever was dropped when. Of all rows so far, the `budget` of largest
lot are kept: those are equally likely to be any of them. `sinks` and `recent` rows stay besides, to hold a
policy that has such rows against the same with the rest by lot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn import rng
from pronghorn.kv.view import KVView, Scored
from pronghorn.methods._options import at_least
from pronghorn.methods.kv._grid import AtGrid
from pronghorn.methods.kv._lots import lots
from pronghorn.types import Guarantee, KVPlan, Traits


@dataclass(frozen=True)
class Random(AtGrid):
    budget: int = 1024  # rows that each head keeps
    sinks: int = 0  # first rows that always stay
    recent: int = 0  # last rows that always stay
    every: int = 64  # tokens between drops in the answer
    prompt_every: int = 2048  # tokens between drops inside the prompt

    traits = Traits(Guarantee.APPROXIMATE, rows="head", drops=True)

    def __post_init__(self) -> None:
        at_least("random", self, budget=1, sinks=0, recent=0, every=1, prompt_every=1)

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        return view.plan(self.score(view, taps)) if view.n > self.budget else None

    def score(self, view: KVView, taps: dict[str, NDArray[Any]]) -> Scored:
        always = view.last(self.recent) | (np.arange(view.n) < self.sinks)
        return Scored(lots(view, rng.KEEP), always, self.budget)
