"""TOVA (Oren et al., 2024, arXiv 2401.06104): each new query drops the row that it attends to least.

One row leaves a layer whenever it has more than `budget`: the one of least weight under the newest query,
averaged over all heads, whether old or new; all heads of a layer keep the same rows. The prompt is cut once,
at its end, to the rows of most weight under its last query, as the authors' code and kvpress do; with
`prompt_every` it is treated like the answer, query by query, in pieces of so many tokens, which holds less
while a long prompt runs and is worse: what a question at the end asks for has been dropped by then.
Departures: what queries would have dropped one after the other is done at barriers, in their order and from
their own weights, so that up to `every` rows more are held and queries between two barriers still see them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.kv.look import BLOCK
from pronghorn.kv.view import KVView, rounded
from pronghorn.methods._options import at_least
from pronghorn.methods.kv._grid import AtGrid
from pronghorn.types import Guarantee, KVPlan, Traits


@dataclass(frozen=True)
class Tova(AtGrid):
    budget: int = 1024  # rows that each layer keeps
    every: int = 64  # tokens between drops in the answer
    prompt_every: int = 0  # tokens between drops inside the prompt; 0: its last query chooses, at its end

    def __post_init__(self) -> None:
        at_least("tova", self, budget=1, every=1, prompt_every=0)

    @property
    def traits(self) -> Traits:
        taps = ("q.new",) if self.prompt_every else ("q.last1", "q.answer")
        return Traits(Guarantee.APPROXIMATE, taps=taps, rows="layer", drops=True)

    def barrier(self, n_prompt: int, length: int) -> int:
        return n_prompt if length < n_prompt and not self.prompt_every else super().barrier(n_prompt, length)

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        if view.n <= self.budget:
            return None
        keep = np.stack([self._alive(view, layer, taps) for layer in range(view.n_layers)])
        return view.keep_where(keep[:, None])

    def _alive(self, view: KVView, layer: int, taps: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """(n,): what is left of a layer's rows after its queries."""
        q, pos = taps["q"][layer], taps["q_pos"]
        n, rows = int(view.valid[layer, 0].sum()), len(pos)
        alive = np.arange(view.n) < n
        first = max(0, self.budget - (n - rows))  # queries before it drop nothing
        for start in range(first, rows, BLOCK):
            some = slice(start, start + BLOCK)
            weights = rounded(view.weights(layer, q[:, some], pos[some]).mean(axis=0))
            for i, row in enumerate(weights, n - rows + start):  # i: number of the query's own row
                there = np.flatnonzero(alive[: i + 1])
                over = len(there) - self.budget  # one, but for the last query of a prompt
                if over > 0:
                    alive[there[np.argsort(row[there], kind="stable")[:over]]] = False
        return alive
