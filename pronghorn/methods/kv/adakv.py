"""Ada-KV (Feng et al., 2024, arXiv 2407.11550): heads of a layer share one budget.

Another policy scores rows; of those of all heads of a layer the best are kept, as many as the heads may have
together. No head keeps fewer than `floor` of its own budget. Scores must mean the same in all heads, as
weights of attention do. Heads are ragged and take as much memory as they keep. With `policy=pyramidkv` layers
have budgets of their own, and their heads share those.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.kv.view import KVView, Scored
from pronghorn.methods.kv._inner import scorer
from pronghorn.slots import Scorer
from pronghorn.types import KVPlan, Traits


@dataclass(frozen=True)
class AdaKv:
    policy: str = "snapkv"  # which scores, with its options; its budget is that of a head on average
    floor: float = 0.2  # share of its budget that each head keeps in any case

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise MethodError(f"adakv: floor is from 0 to 1, not {self.floor}")
        self._policy  # noqa: B018 - a wrong one is refused now

    @cached_property
    def _policy(self) -> Scorer:
        return scorer("adakv", self.policy)

    @property
    def traits(self) -> Traits:
        return replace(self._policy.traits, rows="head")

    def barrier(self, n_prompt: int, length: int) -> int:
        return self._policy.barrier(n_prompt, length)

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        return view.plan(self.score(view, taps))

    def score(self, view: KVView, taps: dict[str, NDArray[Any]]) -> Scored:
        scored = self._policy.score(view, taps)
        shape = view.valid.shape
        s = np.where(np.broadcast_to(scored.always, shape), np.inf, scored.rows)
        s = np.where(view.valid, s, -np.inf)
        each = np.broadcast_to(np.asarray(scored.budget), shape[:2])
        budget = np.zeros(shape[:2], np.int32)
        for layer, heads in enumerate(s):
            own = (each[layer] * self.floor).astype(int)
            rank = np.argsort(np.argsort(-heads, axis=1, kind="stable"), axis=1)
            heads = np.where(view.valid[layer] & (rank < own[:, None]), np.inf, heads)
            best = np.argsort(-heads, axis=None, kind="stable")[: int(each[layer].sum())]
            best = best[heads.reshape(-1)[best] > -np.inf]
            budget[layer] = np.bincount(best // shape[2], minlength=shape[1])
        return scored._replace(budget=budget)
