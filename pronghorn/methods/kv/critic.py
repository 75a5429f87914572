"""CRITIC (Srinivas et al., 2025, arXiv 2504.01281): rows are kept by importance, a sum of several terms.

The abstract says that caches are compressed by token importance and gives no formula; the terms are ours,
and nothing here claims the paper's results. Of each KV head

    attention  what all queries so far gave to the row in sum, times the norm of its value (`values`): how
               much it added to their outputs; over the largest of the head
    focus      how narrow the row's own attention was when it was a query: 1 less its entropy over the
               logarithm of the rows that it saw

and a row's importance is (1 - `focus`) times the first and `focus` times the second. The first `sinks`
rows and the later half of the budget stay. With `focus=0,values=false,sinks=0` it is H2O. Rows are dropped
in batches at barriers; terms are averaged over the query heads of a KV head.

ATLAS, the paper's other half, says when to retrieve more text: when attention and low confidence tell that
the next token will be wrong. Nothing here retrieves, so all that could come of it is a number, and one that
does is reported already, the `logprobs` of a request. Measured on the look-up model, with as many keys that
the text has not as keys that it has: the log-probability of the answer's first token alone tells them apart
with an AUROC of 0.98 (60 texts of 500 tokens; 0.96 where they have 900). Answers that this policy or `h2o`
made wrong by what it dropped are told from right ones by the less likely of their two tokens, with 0.91; not
so where rows were dropped by lot (0.41), as the model is sure of what it says then. What the entropy of the
last query's attention tells depends on the head: in the mean of all 0.33, worse than a guess, and 1.00 by
the largest weight in one layer, which nobody knows ahead. Times the log-probability it gains 0.001, and
attention would have to keep its weights in every step. So ATLAS is no method here.
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
from pronghorn.methods.kv._grid import AtGrid
from pronghorn.methods.kv._seen import sees
from pronghorn.types import Guarantee, KVPlan, Traits

SUM, FOCUS = "critic.sum", "critic.focus"


@dataclass(frozen=True)
class Critic(AtGrid):
    budget: int = 1024  # rows that each head keeps, half of them the latest
    focus: float = 0.05  # weight of the row's own focus, from 0 to 1
    values: bool = True  # attention counts times the norm of the value
    sinks: int = 4  # first rows that always stay
    every: int = 64  # tokens between drops in the answer
    prompt_every: int = 512  # tokens between drops inside the prompt

    traits = Traits(Guarantee.APPROXIMATE, taps=("q.new",), rows="head", drops=True, notes=(SUM, FOCUS))

    def __post_init__(self) -> None:
        at_least("critic", self, budget=2, sinks=0, every=1, prompt_every=1)
        if not 0 <= self.focus <= 1:
            raise MethodError(f"critic: focus is from 0 to 1, not {self.focus}")

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        return view.plan(self.score(view, taps))

    def score(self, view: KVView, taps: dict[str, NDArray[Any]]) -> Scored:
        total, focus = view.total(SUM, taps), self._focus(view, taps)
        added = rounded(total * np.linalg.norm(view.v, axis=-1) if self.values else total)
        share = added / np.maximum(added.max(axis=-1, keepdims=True), 1e-30)
        score = (1 - self.focus) * share + self.focus * rounded(focus)
        always = view.last(self.budget - self.budget // 2) | (np.arange(view.n) < self.sinks)
        return Scored(score, always, self.budget, {SUM: total, FOCUS: focus})

    def _focus(self, view: KVView, taps: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """(L, H, n): the note, with that of new rows."""
        focus, pos = view.note(FOCUS), taps["q_pos"]
        for layer, q in enumerate(taps["q"]):
            for i in range(0, len(pos), BLOCK):
                some = slice(i, i + BLOCK)
                w = view.weights(layer, q[:, some], pos[some])
                entropy = -(w * np.log(np.maximum(w, 1e-30))).sum(axis=-1)
                rows = np.maximum(sees(view, layer, pos[some]).sum(axis=-1), 2)
                narrow = 1 - view.by_kv_head(entropy) / np.log(rows)  # (H, r)
                for head, n in enumerate(view.valid[layer].sum(axis=-1)):
                    first = n - len(pos) + i  # the new rows are the last ones of a head
                    focus[layer, head, first : first + narrow.shape[1]] = narrow[head]
        return focus
