"""ActQKV (Xiao et al., 2025, arXiv 2502.13542): blocks are found by their most telling keys, as many as it
takes.

A page keeps `keys` of its keys, those that lie farthest from the page's mean and so stand out. The query
heads that share a KV head vote on pages with the softmax of their scores with these keys, and the best
pages are read until they have the share `density` of the votes, `tokens` rows at most: few where scores
are peaked, more where they are flat, layer by layer. Departures: the paper makes one probe query for a
window of a long prompt, out of the tokens whose queries deviate most from the window's mean, and scores
blocks with it. What a window holds would depend here on how a prompt was cut into steps, so a row is its
own probe, and the deviation from the mean picks the keys that stand for a block instead. The paper sets a
layer's budget by the information that its scores hold, in a formula that we do not know; a share of the
votes is ours. Positions stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE
from pronghorn.methods._options import at_least
from pronghorn.methods.select import _pages
from pronghorn.types import Array, Choice, Field, Guarantee, Traits


@dataclass(frozen=True)
class ActQKV(_pages.Pages):
    tokens: int = 2048  # sealed rows that a query reads, in whole pages
    keys: int = 4  # that stand for a page
    density: float = 0.95  # share of the votes after which no further page is read
    dense_layers: int = 0  # first layers, which are read whole

    traits = Traits(Guarantee.APPROXIMATE)

    def __post_init__(self) -> None:
        at_least("actqkv", self, tokens=1, dense_layers=0)
        if not 1 <= self.keys <= PAGE:
            raise MethodError(f"actqkv: keys is 1 to {PAGE}, not {self.keys}")
        if not 0 < self.density <= 1:
            raise MethodError(f"actqkv: density is above 0 and 1 at most, not {self.density}")

    @property
    def choice(self) -> Choice:
        return Choice("dots", _pages.whole(self.tokens), "vote", cover=self.density)

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return (Field("mean", "bfloat16", (self.keys, dim), rows=-1),)

    def index(self, k: Array, valid: Array, ops: Any) -> dict[str, Array]:
        xp = ops.xp
        k = _pages.filled(k, valid, ops)
        away = k - _pages.means(k, ops.to(valid, ops.name)[:, None], ops)
        far = _pages.rounded(xp.sum(away * away, axis=-1), ops)
        far = xp.where(valid, far, xp.full_like(far, -1.0))
        best = xp.argsort(-far, axis=-1, stable=True)[:, : self.keys]
        return {"mean": k[xp.arange(k.shape[0], device=k.device)[:, None], best]}
