"""KVzip (Kim et al., 2025, arXiv 2505.23416): rows stay that the model needs to say the context once more.

At the end of the prompt its tokens are run again behind it, in parts of `chunk`, each with the last `lead`
tokens of the part before in front. A row's score is the largest weight that any of those queries gives it,
in any query head of its KV head. The rows that were run again are then forgotten. What is kept does not go
by a question that is still to come, so it serves many. All layers and heads share what they may keep
together (`share`); the first `sinks` rows always stay.

Departures: no words ask for the repetition ("Repeat the previous context exactly."), as they would need a
tokenizer and a model that follows them; weights are those of attention itself, over the whole context and
what was run again so far of the part, where the paper takes a part's own rows, the sinks and what is run
again. The prompt is run twice, in one go: other requests wait for it. Queries of one part are held at a
time. Rows are dropped once; the answer's are all kept, and memory at the end of the prompt's run is that
of the whole prompt and a part. Parts lie behind the prompt, so a prompt as long as the context is scored
at positions beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.kv.look import BLOCK
from pronghorn.kv.view import KVView, Scored, rounded
from pronghorn.methods._options import at_least
from pronghorn.types import FOREVER, Guarantee, KVPlan, Traits

MOST = 4096  # rows that are run at once


@dataclass(frozen=True)
class KVzip:
    budget: int = 1024  # rows of the prompt that a head keeps, in the mean of all
    share: bool = True  # heads and layers keep what is best in all of them; or all keep as many
    sinks: int = 4  # first rows that always stay
    chunk: int = 512  # tokens that are run again together
    lead: int = 8  # tokens of the part before that stand in front

    traits = Traits(Guarantee.APPROXIMATE, taps=("q.behind",), rows="head", drops=True)

    def __post_init__(self) -> None:
        at_least("kvzip", self, budget=1, sinks=0, chunk=1, lead=0)
        if self.chunk + self.lead > MOST:
            raise MethodError(f"kvzip: chunk and lead are {MOST} together at most")

    def barrier(self, n_prompt: int, length: int) -> int:
        return n_prompt if length < n_prompt else FOREVER

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        return view.plan(self.score(view, taps)) if view.n > self.budget else None

    def score(self, view: KVView, taps: dict[str, NDArray[Any]]) -> Scored:
        most = np.zeros(view.valid.shape)
        for first in range(0, view.n_prompt, self.chunk):
            with view.behind(view.ids[max(0, first - self.lead) : first + self.chunk]) as (further, again):
                for layer, q in enumerate(again["q"]):
                    self._raise(most[layer], further, layer, q, again["q_pos"])
        score = rounded(np.where(view.valid, most, -1.0))
        always = view.valid & (np.arange(view.n) < self.sinks)
        return Scored(score, always, self._budgets(score, always) if self.share else self.budget)

    def _raise(
        self, most: NDArray[Any], view: KVView, layer: int, q: NDArray[Any], pos: NDArray[np.int32]
    ) -> None:
        """most (H, n), of rows before those that were run again: at least what these queries give."""
        for i in range(0, len(pos), BLOCK):
            weight = view.weights(layer, q[:, i : i + BLOCK], pos[i : i + BLOCK]).max(axis=1)
            by_kv = weight.reshape(view.n_kv, -1, weight.shape[-1]).max(axis=1)
            for head, n in enumerate(view.valid[layer].sum(axis=-1) - len(pos)):
                np.maximum(most[head, :n], by_kv[head, :n], out=most[head, :n])

    def _budgets(self, score: NDArray[Any], always: NDArray[np.bool_]) -> NDArray[np.int32]:
        """(L, H): how many of the best rows of all are each head's."""
        shape, rows = score.shape[:2], score.shape[2]
        flat = np.where(always, np.inf, score).reshape(-1)
        best = np.argsort(-flat, kind="stable")[: self.budget * shape[0] * shape[1]]
        return np.bincount(best // rows, minlength=shape[0] * shape[1]).reshape(shape).astype(np.int32)
