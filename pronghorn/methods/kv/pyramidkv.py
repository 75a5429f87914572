"""PyramidKV (Cai et al., 2024, arXiv 2406.02069): lower layers keep more rows than higher ones.

Another policy scores rows, SnapKV in the paper. Budgets fall in a line with depth, those of all layers
together being what the policy would keep. `ratio` is how many times more the lowest keeps than the highest,
about: the highest keeps a `ratio`th of the budget, what always stays not counted. Where the lowest would then
keep more rows than there are, it keeps all and the line is flatter.
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
class PyramidKv:
    policy: str = "snapkv"  # which scores, with its options; its budget is that of a layer on average
    ratio: float = 20.0  # the highest layer keeps the budget over this

    def __post_init__(self) -> None:
        if self.ratio < 1:
            raise MethodError(f"pyramidkv: ratio is 1 or above, not {self.ratio}")
        self._policy  # noqa: B018 - a wrong one is refused now

    @cached_property
    def _policy(self) -> Scorer:
        return scorer("pyramidkv", self.policy)

    @property
    def traits(self) -> Traits:
        own = self._policy.traits
        return replace(own, rows="layer" if own.rows == "seq" else own.rows)

    def barrier(self, n_prompt: int, length: int) -> int:
        return self._policy.barrier(n_prompt, length)

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        return view.plan(self.score(view, taps))

    def score(self, view: KVView, taps: dict[str, NDArray[Any]]) -> Scored:
        scored = self._policy.score(view, taps)
        mean = float(np.mean(scored.budget))
        kept = int(np.broadcast_to(scored.always, view.valid.shape).sum(axis=-1).max())
        room = mean - kept
        if room <= 0 or view.n_layers < 2 or mean >= view.n:
            return scored
        least = room / self.ratio
        most = 2 * room - least
        if most >= view.n - kept:
            most = view.n - kept
            least = 2 * room - most
        line = np.linspace(most, least, view.n_layers)
        return scored._replace(budget=(np.round(line).astype(np.int32) + kept)[:, None])
