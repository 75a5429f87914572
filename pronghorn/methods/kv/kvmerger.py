"""KVMerger (Wang et al., 2024, arXiv 2407.08454): rows beside each other whose keys are alike become one.

The first `sinks` rows, the latest and those that were given most attention stay as they are (`recent` and
`heavy`, shares of the budget). Of the others, rows that are neighbours are merged where the cosine of their
keys is above a threshold: runs of them are merging sets. The pivot of a set is the row that was given most;
the set becomes means of its keys and values at the pivot's position, weighted by a Gaussian of the distance
between a key and the pivot's, as wide as the mean squared distance of the set.

The paper tunes the threshold for each model. Here it is the highest with which a head comes down to `budget`
rows, never below `threshold`; where that is not enough, the rows that were given least are dropped. Other
departures: a merged row counts in attention as many times as rows went into it (`count`; their logarithm is
added to its score), or equal rows would weigh less merged than apart; the width leaves the pivot itself out;
rows are treated in batches at barriers, keys as they are stored, rotated, and sets are those of a KV head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.kv.view import Bools, KVView, rounded
from pronghorn.methods._options import at_least
from pronghorn.methods.kv._grid import AtGrid
from pronghorn.types import BIAS, Guarantee, Ints, KVPlan, Traits

SUM, COUNT = "kvmerger.sum", "kvmerger.count"


@dataclass(frozen=True)
class KvMerger(AtGrid):
    budget: int = 1024  # rows that each head keeps, merged ones included
    threshold: float = 0.75  # cosine below which neighbours are never merged
    sinks: int = 4  # first rows that stay as they are
    recent: float = 0.25  # of the budget, the latest rows, which stay as they are
    heavy: float = 0.25  # of the budget, the rows given most attention, which stay as they are
    count: bool = True  # a merged row counts as many times as rows went into it
    every: int = 64  # tokens between merges in the answer
    prompt_every: int = 512  # tokens between merges inside the prompt

    traits = Traits(Guarantee.APPROXIMATE, taps=("q.new",), rows="head", drops=True, notes=(SUM, COUNT, BIAS))

    def __post_init__(self) -> None:
        at_least("kvmerger", self, budget=2, sinks=0, every=1, prompt_every=1)
        for name in ("recent", "heavy"):
            if not 0 <= getattr(self, name) <= 1:
                raise MethodError(f"kvmerger: {name} is from 0 to 1, not {getattr(self, name)}")
        if self.sinks + self._recent + self._heavy > self.budget:
            raise MethodError("kvmerger: sinks, recent and heavy leave no room in the budget: make them less")

    @property
    def _recent(self) -> int:
        return max(1, int(self.recent * self.budget))

    @property
    def _heavy(self) -> int:
        return int(self.heavy * self.budget)

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        total = view.total(SUM, taps)
        if view.n <= self.budget:
            return KVPlan(notes={SUM: total})
        held = np.maximum(view.note(COUNT), 1)
        k, v, changed = view.k.copy(), view.v.copy(), np.zeros(view.valid.shape, bool)
        stays = view.valid.copy()
        safe = view.last(self._recent) | (np.arange(view.n) < self.sinks)
        for at in np.ndindex(view.n_layers, view.n_kv):
            n = int(view.valid[at].sum())
            if n > self.budget:
                some = slice(n)
                self._merge(
                    k[at][some], v[at][some], total[at][some], held[at][some], safe[at][some],
                    stays[at][some], changed[at][some],
                )  # fmt: skip
        plan = view.keep_where(stays)
        plan.notes.update({SUM: total, COUNT: held})
        if self.count:
            plan.notes[BIAS] = np.log(held)
        return view.rewrite(plan, k, v, changed)

    def _merge(
        self, k: NDArray[Any], v: NDArray[Any], total: NDArray[Any], held: NDArray[Any], safe: Bools,
        stays: Bools, changed: Bools,
    ) -> None:  # fmt: skip
        """Bring one head down to the budget; writes to all but `safe`."""
        score, over = rounded(total), len(k) - self.budget
        heavy = np.argsort(np.where(safe, np.inf, -score), kind="stable")[: self._heavy]
        free = ~safe
        free[heavy] = False
        alike = self._alike(k)
        pairs = np.flatnonzero(free[1:] & free[:-1] & (alike >= self.threshold))
        joined = np.zeros(len(k), bool)  # to the row before
        joined[1 + pairs[np.argsort(-alike[pairs], kind="stable")[:over]]] = True
        for rows in _runs(joined):
            pivot = rows[np.argmax(score[rows])]
            distance = ((k[rows] - k[pivot]).astype(np.float64) ** 2).sum(axis=-1)
            width = distance.sum() / (len(rows) - 1)
            w = held[rows] * np.exp(-distance / (2 * width) if width > 0 else 0 * distance)
            w = (w / w.sum())[:, None]
            k[pivot], v[pivot] = (w * k[rows]).sum(axis=0), (w * v[rows]).sum(axis=0)
            total[pivot], held[pivot] = total[rows].sum(), held[rows].sum()
            stays[rows], changed[pivot] = False, True
            stays[pivot] = True
        left = int(stays.sum()) - self.budget
        if left > 0:
            given = np.where(free & stays, rounded(total), np.inf)
            stays[np.argsort(given, kind="stable")[: min(left, int((free & stays).sum()))]] = False

    def _alike(self, k: NDArray[Any]) -> NDArray[Any]:
        """(n - 1,): the cosine of each key and the next."""
        unit = k / np.maximum(np.linalg.norm(k, axis=-1, keepdims=True), 1e-30)
        return np.asarray(np.round((unit[1:] * unit[:-1]).sum(axis=-1), 4))


def _runs(joined: Bools) -> list[Ints]:
    """Rows that hang together, two or more."""
    start = np.flatnonzero(~joined & np.append(joined[1:], False))
    stop = np.flatnonzero(joined & ~np.append(joined[1:], False)) + 1
    return [np.arange(a, b, dtype=np.int32) for a, b in zip(start, stop, strict=True)]
