"""D2O (Wan et al., 2024, arXiv 2406.13035): heavy hitters, layer by layer, with what is dropped merged back.

Rows are chosen as in H2O, the first `sinks` always among them. Layers whose attention is spread evenly keep
more rows than those where few rows have most of it: budgets are a softmax of minus the variance of what rows
were given. Each dropped row is compared with the kept ones, by the cosine of their keys; where the nearest
is near enough, the row is merged into it: key and value become (own + sum of similarity times dropped) over
the number of rows. Near enough is a threshold that follows the mean similarity: at first that mean, then
`inertia` of the old threshold and the rest of the new mean.

The paper's abstract gives no formulas; these are from its released code, with departures: decisions are taken
per KV head and not for the mean of heads; a layer's variance is taken relative to the largest of all layers,
as its size would depend on the length otherwise (relative to their mean, the one layer that looks things up
in a small model was left with a few rows); no layer is left out; half of a layer's own budget are its latest
rows. Keys are compared and averaged as they are stored, rotated. Rows are dropped in batches at barriers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.kv.view import Bools, KVView, Scored, rounded
from pronghorn.methods._options import at_least
from pronghorn.methods.kv._grid import AtGrid
from pronghorn.types import Guarantee, Ints, KVPlan, Traits

SUM, NEAR = "d2o.sum", "d2o.near"


@dataclass(frozen=True)
class D2O(AtGrid):
    budget: int = 1024  # rows that a head keeps, in the mean of layers; half of them the latest
    sinks: int = 4  # first rows that always stay
    threshold: float = 0.0  # similarity from which rows are merged; 0: see above, above 1: never
    inertia: float = 0.5  # of the threshold
    layers: bool = True  # layers have budgets of their own
    every: int = 64  # tokens between drops in the answer
    prompt_every: int = 512  # tokens between drops inside the prompt

    traits = Traits(Guarantee.APPROXIMATE, taps=("q.new",), rows="head", drops=True, notes=(SUM, NEAR))

    def __post_init__(self) -> None:
        at_least("d2o", self, budget=2, sinks=0, every=1, prompt_every=1)
        if not 0 <= self.inertia <= 1:
            raise MethodError(f"d2o: inertia is from 0 to 1, not {self.inertia}")

    def score(self, view: KVView, taps: dict[str, NDArray[Any]]) -> Scored:
        total = view.total(SUM, taps)
        budgets = self._budgets(view, total)
        always = view.last((budgets - budgets // 2)[..., None]) | (np.arange(view.n) < self.sinks)
        return Scored(rounded(total), always, budgets, {SUM: total})

    def _budgets(self, view: KVView, total: NDArray[Any]) -> Ints:
        """(L, 1)."""
        if not self.layers or view.n <= self.budget:
            return np.full((view.n_layers, 1), self.budget, np.int32)
        share = (
            total / np.maximum(total.sum(axis=-1, keepdims=True), 1e-30) * view.valid.sum(-1, keepdims=True)
        )
        spread = rounded(np.var(share, axis=-1, where=view.valid).mean(axis=1))
        e = np.exp(-spread / max(float(spread.max()), 1e-30))
        budgets = e / e.sum() * view.n_layers * self.budget
        whole: Ints = np.clip(np.round(budgets), self.sinks + 2, view.n).astype(np.int32)
        return whole[:, None]

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        plan = view.plan(self.score(view, taps))
        if plan is None or not plan.keep:
            return plan
        near = view.note(NEAR)
        k, v, changed = view.k.copy(), view.v.copy(), np.zeros(view.valid.shape, bool)
        kept = view.kept(plan)
        for at in np.ndindex(view.n_layers, view.n_kv):
            near[at] = self._merge(k[at], v[at], kept[at], view.valid[at], float(near[at].max()), changed[at])
        plan.notes[NEAR] = near
        return view.rewrite(plan, k, v, changed)

    def _merge(
        self, k: NDArray[Any], v: NDArray[Any], kept: Bools, valid: Bools, near: float, changed: Bools
    ) -> float:
        """Merge one head's dropped rows into its k and v, and mark those that change; the threshold."""
        gone, stay = np.flatnonzero(valid & ~kept), np.flatnonzero(kept)
        if not len(gone):
            return near
        unit = k / np.maximum(np.linalg.norm(k, axis=-1, keepdims=True), 1e-30)
        alike = np.round(unit[gone] @ unit[stay].T, 4)
        into, best = stay[alike.argmax(axis=1)], alike.max(axis=1)
        mean = float(best.mean())
        # on the grid of the similarities, so that one that equals it is above it however it was summed
        near = round(self.inertia * near + (1 - self.inertia) * mean if near else mean, 4)
        yes = best >= (self.threshold or near)
        into, best, gone = into[yes], best[yes, None].astype(k.dtype), gone[yes]
        members = 1 + np.bincount(into, minlength=len(k)).astype(k.dtype)[:, None]
        for a in (k, v):
            np.add.at(a, into, best * a[gone])
            a /= members
        changed[into] = True
        return near
