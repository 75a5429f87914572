"""Expected Attention (Devoto et al., 2025, arXiv 2510.00636): rows are kept by what queries to come will
give.

Queries before their rotation are taken to be normally distributed. Their mean and covariance are those of
the queries since the last drop; the next `future` positions turn them, on average, by one mean rotation. A
row's expected weight is then exp(k.m + k.C.k / 2) for the turned and scaled mean m and covariance C, over
the sum of all rows'; it is averaged over the query heads of a KV head and multiplied by the norm of the
row's value. No question is looked at more than any other text, so what is kept serves several.

The first `sinks` rows always stay, and their queries do not count. As published, statistics are of a whole
prompt and rows are dropped at its end: `prompt_every` as long as the prompt does that, at the price of
holding its queries. Shorter, rows are dropped while the prompt runs, each time by the queries since the
last time; the end of the prompt waits for at least half of `prompt_every`, as few queries say little. A
soft cap of scores and the window of a layer are not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.kv.view import KVView, Scored, rounded
from pronghorn.methods._options import at_least
from pronghorn.types import Guarantee, Ints, KVPlan, Traits


@dataclass(frozen=True)
class ExpectedAttention:
    budget: int = 1024  # rows that each head keeps
    future: int = 512  # positions to come that count
    covariance: bool = True  # or the mean alone
    sinks: int = 4  # first rows that always stay
    every: int = 128  # tokens between drops in the answer
    prompt_every: int = 512  # tokens between drops inside the prompt

    traits = Traits(Guarantee.APPROXIMATE, taps=("q.new",), rows="head", drops=True)

    def __post_init__(self) -> None:
        at_least("expected-attention", self, budget=1, future=1, sinks=0, every=1, prompt_every=1)

    def barrier(self, n_prompt: int, length: int) -> int:
        if length >= n_prompt:
            return n_prompt + ((length - n_prompt) // self.every + 1) * self.every
        at = (length // self.prompt_every + 1) * self.prompt_every
        return n_prompt if n_prompt - at < self.prompt_every / 2 else at

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        return view.plan(self.score(view, taps)) if view.n > self.budget else None

    def score(self, view: KVView, taps: dict[str, NDArray[Any]]) -> Scored:
        counts = taps["q_at"] >= self.sinks
        counts |= not counts.any()
        pos: Ints = taps["q_pos"][counts]
        coming = view.next_pos + np.arange(self.future, dtype=np.int32)
        weight = np.zeros(view.valid.shape)
        for layer, q in enumerate(taps["q"]):
            on = np.exp(1j * view.angles(layer, coming)).mean(axis=0)
            turn = np.exp(-1j * view.angles(layer, pos)) * on
            x = _turned(q[:, counts].astype(np.float64), turn) * view.scale[layer]
            weight[layer] = view.by_kv_head(self._weights(view, layer, x))
        score = weight * np.linalg.norm(view.v, axis=-1)
        return Scored(rounded(score), np.arange(view.n) < self.sinks, self.budget)

    def _weights(self, view: KVView, layer: int, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n_heads, n): expected weights, by queries (n_heads, r, dim) as they will be."""
        group = len(x) // view.n_kv
        k, valid = (np.repeat(a[layer], group, axis=0) for a in (view.k, view.valid))
        mean = x.mean(axis=1, keepdims=True)
        s = (k @ mean.swapaxes(1, 2))[..., 0]
        if self.covariance:
            off = x - mean
            s += ((k @ (off.swapaxes(1, 2) @ off / x.shape[1])) * k).sum(axis=-1) / 2
        s = np.where(valid, s, -np.inf)
        e = np.exp(s - s.max(axis=-1, keepdims=True))
        return np.asarray(e / e.sum(axis=-1, keepdims=True))


def _turned(x: NDArray[Any], turn: NDArray[np.complex128]) -> NDArray[Any]:
    """x (..., r, dim) with value i and value i + m as a complex number times turn (r, m)."""
    m = turn.shape[-1]
    z = (x[..., :m] + 1j * x[..., m : 2 * m]) * turn
    return np.concatenate([z.real, z.imag, x[..., 2 * m :]], axis=-1)
