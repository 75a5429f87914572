"""Keyformer (Adnan et al., 2024, arXiv 2403.09054): heavy hitters by a softmax with Gumbel noise.

As in H2O, each KV head keeps its last rows and, of the others, those to which queries gave most attention
in sum. Here scores get noise and are divided by a temperature before their softmax: what was dropped has
shifted the weights of what is left, and noise lets rows of middling weight stay. The temperature is
`start` in the prompt and rises by `rise` with each token of the answer, up to `end`. Attention itself has
neither.

The paper's abstract gives no formulas; these are from its text and released code. A row's noise is drawn
once, keyed by the request's seed, layer, KV head and position, and is the same for all queries: seeded
serving stays deterministic, in any company. Without noise and with a temperature of 1 it is H2O
(`recent=0.5`), in every bit. Departures: rows are dropped in batches at barriers, and scores are averaged
over the query heads of a KV head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn import rng
from pronghorn.errors import MethodError
from pronghorn.kv.look import BLOCK
from pronghorn.kv.view import KVView, Scored, rounded
from pronghorn.methods._options import at_least
from pronghorn.methods.kv._grid import AtGrid
from pronghorn.methods.kv._lots import lots
from pronghorn.types import Guarantee, KVPlan, Traits

SUM = "keyformer.sum"


@dataclass(frozen=True)
class Keyformer(AtGrid):
    budget: int = 1024  # rows that each head keeps
    recent: float = 0.3  # share of them that are the latest
    noise: float = 1.0  # times Gumbel noise that is added to scores; 0: none
    start: float = 1.0  # temperature in the prompt
    rise: float = 0.01  # of the temperature, with each token of the answer
    end: float = 2.0  # highest temperature
    every: int = 64  # tokens between drops in the answer
    prompt_every: int = 512  # tokens between drops inside the prompt

    traits = Traits(Guarantee.APPROXIMATE, taps=("q.new",), rows="head", drops=True, notes=(SUM,))

    def __post_init__(self) -> None:
        at_least("keyformer", self, budget=2, noise=0, rise=0, every=1, prompt_every=1)
        if not 0 <= self.recent <= 1:
            raise MethodError(f"keyformer: recent is a share from 0 to 1, not {self.recent}")
        if not 0 < self.start <= self.end:
            raise MethodError(
                f"keyformer: start is above 0 and no more than end, not {self.start} and {self.end}"
            )

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        return view.plan(self.score(view, taps))

    def score(self, view: KVView, taps: dict[str, NDArray[Any]]) -> Scored:
        plain = self.noise == 0 and self.rise == 0 and self.start == 1
        total = view.total(SUM, taps) if plain else self._noisy(view, taps)
        always = view.last(math.ceil(self.budget * self.recent))
        return Scored(rounded(total), always, self.budget, {SUM: total})

    def _noisy(self, view: KVView, taps: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """`KVView.total` of the weights with noise."""
        total, pos = view.note(SUM), taps["q_pos"]
        answered = np.maximum(taps["q_at"] - view.n_prompt + 1, 0)
        heat = np.minimum(self.start + self.rise * answered, self.end)[:, None]
        u = np.maximum(lots(view, rng.KEEP + 1), 2.0**-53)
        noise = -self.noise * np.log(-np.log(u))
        for layer, q in enumerate(taps["q"]):
            more = np.repeat(noise[layer], len(q) // view.n_kv, axis=0)[:, None]
            mass = np.zeros((len(q), view.n), np.float32)
            for i in range(0, len(pos), BLOCK):
                some = slice(i, i + BLOCK)
                x = view.logits(layer, q[:, some], pos[some])
                x = (x + more.astype(x.dtype)) / heat[some].astype(x.dtype)
                e = np.exp(x - x.max(axis=-1, keepdims=True))
                mass += (e / e.sum(axis=-1, keepdims=True)).sum(axis=1)
            total[layer] += view.by_kv_head(mass)
        return total
