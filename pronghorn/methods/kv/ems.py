"""EMS (Li et al., 2024, arXiv 2412.08521): the best rows stay, the next are merged.

A row's score is the larger of two, each over its largest in the head: what it was given by all queries so
far, over the number of queries that came after it (so that early rows have no advantage), and what the last
`window` queries gave to it. The best rows of a KV head are class centres, with the last `window` among them;
the next `candidates` times as many are merged into the centre whose key is nearest by cosine, or into the
zero class, which is thrown away, where none is nearer than `threshold`; the others are dropped. Rows are
merged by their scores as weights: the directions of keys, at the centre's length, and values. Heads of a
layer share its budget: half of it evenly, half by the number of rows that hold `mass` of a head's scores,
less for heads whose keys point in one direction (their mean cosine).

The paper's abstract gives no formulas; those of the score, of merging and of the heads' budgets are choices.
Departures: rows are treated in batches at barriers; what the last queries gave is carried on from barrier to
barrier where fewer than `window` came; keys are merged as they are stored, rotated.
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

SUM, LATE = "ems.sum", "ems.late"


@dataclass(frozen=True)
class Ems(AtGrid):
    budget: int = 1024  # rows that a head keeps, in the mean of a layer's heads
    window: int = 32  # last queries that score rows, and whose rows always stay
    candidates: float = 1.0  # rows that are merged, in units of those kept
    threshold: float = 0.6  # cosine below which a row is dropped and not merged; above 1: always
    heads: bool = True  # heads have budgets of their own
    mass: float = 0.9  # of a head's scores; its rows, from the best on, say how many it needs
    every: int = 64  # tokens between merges in the answer
    prompt_every: int = 512  # tokens between merges inside the prompt

    traits = Traits(Guarantee.APPROXIMATE, taps=("q.new",), rows="head", drops=True, notes=(SUM, LATE))

    def __post_init__(self) -> None:
        at_least("ems", self, window=1, candidates=0, every=1, prompt_every=1)
        if self.budget < 2 * self.window:
            raise MethodError(
                f"ems: budget is {2 * self.window} or above, twice the window, which each head keeps, not "
                f"{self.budget}"
            )
        if not 0 < self.mass <= 1:
            raise MethodError(f"ems: mass is above 0 and at most 1, not {self.mass}")

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        total, late, best = self._given(view, taps)
        plan = view.plan(self._scored(view, total, late, best))
        if plan is None or not plan.keep:
            return plan
        k, v, changed = view.k.copy(), view.v.copy(), np.zeros(view.valid.shape, bool)
        kept = view.kept(plan)
        for at in np.ndindex(view.n_layers, view.n_kv):
            self._merge(k[at], v[at], best[at], kept[at], view.valid[at], changed[at])
        return view.rewrite(plan, k, v, changed)

    def score(self, view: KVView, taps: dict[str, NDArray[Any]]) -> Scored:
        return self._scored(view, *self._given(view, taps))

    def _given(
        self, view: KVView, taps: dict[str, NDArray[Any]]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """(L, H, n) each: given by all queries, by the last ones, and the score. Not rounded: where rows are
        weighted by it, the last digit of a rounded one would show."""
        total, late = view.note(SUM), view.note(LATE)
        q, pos = taps["q"], taps["q_pos"]
        fresh = min(self.window, len(pos))
        late *= (self.window - fresh) / self.window
        for layer in range(view.n_layers):
            own = view.by_kv_head(view.mass(layer, q[layer, :, -fresh:], pos[-fresh:]))
            late[layer] += own / self.window
            total[layer] += own
            if fresh < len(pos):
                total[layer] += view.by_kv_head(view.mass(layer, q[layer, :, :-fresh], pos[:-fresh]))
        seen = total / np.maximum(view.next_pos - view.pos, 1)
        return total, late, np.maximum(_of_largest(seen), _of_largest(late))

    def _scored(self, view: KVView, total: NDArray[Any], late: NDArray[Any], best: NDArray[Any]) -> Scored:
        rows = rounded(best)
        budget = self._budgets(view, rows)
        return Scored(rows, view.last(self.window), budget, {SUM: total, LATE: late})

    def _budgets(self, view: KVView, score: NDArray[Any]) -> int | Ints:
        if not self.heads or view.n <= self.budget:
            return self.budget
        s = np.sort(np.where(view.valid, score, 0.0), axis=-1)[..., ::-1]
        held = np.cumsum(s, axis=-1)
        need = 1 + (held < self.mass * held[..., -1:]).sum(axis=-1)
        unit = view.k / np.maximum(np.linalg.norm(view.k, axis=-1, keepdims=True), 1e-30)
        mean = unit.sum(axis=2) / np.maximum(view.valid.sum(axis=-1, keepdims=True), 1)
        wants = need * (1 - rounded((mean**2).sum(axis=-1), 3) / 2)  # padding has no key
        even = self.budget / 2
        share = even + even * view.n_kv * wants / wants.sum(axis=1, keepdims=True)
        whole: Ints = np.floor(share + 1e-6).astype(np.int32)
        return whole

    def _merge(
        self, k: NDArray[Any], v: NDArray[Any], score: NDArray[Any], kept: Bools, valid: Bools, changed: Bools
    ) -> None:  # fmt: skip
        """Merge one head's candidates into its k and v, and mark the rows that change."""
        centres, others = np.flatnonzero(kept), np.flatnonzero(valid & ~kept)
        most = int(self.candidates * len(centres))
        others = others[np.argsort(-rounded(score[others]), kind="stable")[:most]]
        size = np.maximum(np.linalg.norm(k, axis=-1, keepdims=True), 1e-30)
        unit = k / size
        alike = np.round(unit[others] @ unit[centres].T, 4)
        zero = np.full((len(others), 1), self.threshold)
        into = np.concatenate([alike, zero], axis=1).argmax(axis=1)  # the last class is thrown away
        classes = len(centres) + 1
        weight = np.zeros((classes, 1))
        way, value = np.zeros((classes, k.shape[-1])), np.zeros((classes, k.shape[-1]))
        own = np.append(np.maximum(score[centres], 1e-12), 0.0)[:, None]
        weight += own
        way[:-1], value[:-1] = own[:-1] * unit[centres], own[:-1] * v[centres]
        w = np.maximum(score[others], 1e-12)[:, None]
        for a, more in ((weight, w), (way, w * unit[others]), (value, w * v[others])):
            np.add.at(a, into, more)
        grown = np.bincount(into, minlength=classes)[:-1] > 0
        length = np.linalg.norm(way[:-1], axis=-1, keepdims=True)
        grown &= (length > 1e-6 * weight[:-1])[:, 0]
        rows = centres[grown]
        k[rows] = way[:-1][grown] / length[grown] * size[rows]
        v[rows] = value[:-1][grown] / weight[:-1][grown]
        changed[rows] = True


def _of_largest(x: NDArray[Any]) -> NDArray[Any]:
    """Over the largest of a head."""
    out: NDArray[Any] = x / np.maximum(x.max(axis=-1, keepdims=True), 1e-30)
    return out
