"""SnapKV (Li et al., 2024, arXiv 2404.14469): the prompt's rows are thinned once, before the answer.

Each KV head keeps the rows that the last `window` prompt tokens attend to most, and those tokens
themselves. Attention is summed over the window, averaged over `kernel` neighbouring rows so that whole
phrases stay together, and averaged over the query heads that share the KV head (the paper stores every
query head). The answer's rows are kept whole; memory at the end of the prompt's run is that of the whole
prompt. A window that is longer than the question dilutes its attention: at small budgets `window` and
`kernel` decide everything (bench/kv.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.kv.view import KVView, Scored, rounded
from pronghorn.types import FOREVER, Guarantee, KVPlan, Traits


@dataclass(frozen=True)
class SnapKv:
    budget: int = 1024  # rows that each head keeps of the prompt
    window: int = 32  # last tokens of the prompt, which choose and are kept
    kernel: int = 5  # neighbouring rows that a score is averaged over; odd

    def __post_init__(self) -> None:
        if self.window < 1:
            raise MethodError(f"snapkv: window is 1 or above, not {self.window}")
        if self.budget <= self.window:
            raise MethodError(
                f"snapkv: budget is above window ({self.window}), not {self.budget}: it holds the window"
            )
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise MethodError(f"snapkv: kernel is odd and 1 or above, not {self.kernel}")

    @property
    def traits(self) -> Traits:
        return Traits(Guarantee.APPROXIMATE, taps=(f"q.last{self.window}",), rows="head", drops=True)

    def barrier(self, n_prompt: int, length: int) -> int:
        return n_prompt if length < n_prompt else FOREVER

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        return view.plan(self.score(view, taps)) if view.n > self.budget else None

    def score(self, view: KVView, taps: dict[str, NDArray[Any]]) -> Scored:
        q, n = taps["q"], view.n  # (n_layers, n_heads, window, dim)
        w = q.shape[2]
        score = np.zeros((view.n_layers, view.n_kv, n))
        for layer in range(view.n_layers):
            seen = view.by_kv_head(view.mass(layer, q[layer], taps["q_pos"]))
            score[layer] = self._smooth(seen[..., : n - w], n)
        return Scored(rounded(score), view.last(w), self.budget)

    def _smooth(self, s: NDArray[Any], n: int) -> NDArray[Any]:
        """Mean over `kernel` rows around each of s (heads, m), zeros beyond its ends; padded to n."""
        half = self.kernel // 2
        wide = np.pad(s, ((0, 0), (half, half)))
        m = s.shape[-1]
        total = np.zeros(s.shape)
        for i in range(self.kernel):
            total += wide[:, i : i + m]
        return np.pad(total / self.kernel, ((0, 0), (0, n - m)))
