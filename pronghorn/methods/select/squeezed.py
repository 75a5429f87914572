"""Squeezed Attention (Hooper et al., 2024, arXiv 2411.09688): keys are found by the centroids of clusters.

The keys of a page are clustered by direction (k-means on normalised keys), and the page keeps the mean of
each cluster's keys. A query gives every centroid a share of its attention, per head, and reads the pages
with the largest shares, `tokens` rows in all. Departures: the paper clusters all keys of a fixed context
together, once, and reads those of clusters above a threshold that it calibrates; pages here are indexed
one by one as they are sealed, so that a context may grow, be shared and be cut, and the number of rows
read is given. The paper has a centroid for 20 keys, a page of 16 has `centroids`. A head's shares are of
its best centroid in each page; those of the query heads that share a KV head are added up. The coarser
level of clusters is left out. Rows that are not read stay in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE
from pronghorn.methods._options import at_least
from pronghorn.methods.select import _pages
from pronghorn.types import Array, Choice, Field, Guarantee, Traits

TURNS = 6  # of k-means


@dataclass(frozen=True)
class Squeezed(_pages.Pages):
    tokens: int = 1024  # sealed rows that a query reads, in whole pages
    centroids: int = 2  # of a page
    dense_layers: int = 2  # first layers, which are read whole

    traits = Traits(Guarantee.APPROXIMATE)

    def __post_init__(self) -> None:
        at_least("squeezed", self, tokens=1, dense_layers=0)
        if not 1 <= self.centroids <= PAGE:
            raise MethodError(f"squeezed: centroids is 1 to {PAGE}, not {self.centroids}")

    @property
    def choice(self) -> Choice:
        return Choice("dots", _pages.whole(self.tokens), "vote")

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return (Field("mean", "bfloat16", (self.centroids, dim), rows=-1),)

    def index(self, k: Array, valid: Array, ops: Any) -> dict[str, Array]:
        xp = ops.xp
        k = _pages.filled(k, valid, ops)  # repeated rows fill a cluster up and count as one below
        norm = xp.sqrt(xp.sum(k * k, axis=-1, keepdims=True))
        unit = k / xp.where(norm > 0, norm, xp.ones_like(norm))
        centre = self._first(unit, ops)
        for _ in range(TURNS):
            mine = self._nearest(unit, centre, valid, ops)
            centre = xp.where(xp.sum(mine, axis=-1)[..., None] > 0, _pages.means(unit, mine, ops), centre)
        mine = self._nearest(unit, centre, valid, ops)
        mean = _pages.means(k, mine, ops)
        alone = _pages.means(k, ops.to(valid, ops.name)[:, None], ops)  # for a cluster without keys: of all
        return {"mean": xp.where(xp.sum(mine, axis=-1)[..., None] > 0, mean, alone)}

    def _first(self, unit: Array, ops: Any) -> Array:
        """(n_pages, centroids, dim): the page's first key, then always the one farthest from those."""
        xp = ops.xp
        at = xp.arange(unit.shape[0], device=unit.device)
        picked = [unit[:, 0]]
        near = xp.sum(unit * picked[0][:, None], axis=-1)
        for _ in range(1, self.centroids):
            far = xp.argmin(_pages.rounded(near, ops), axis=-1)
            picked.append(unit[at, far])
            near = xp.maximum(near, xp.sum(unit * picked[-1][:, None], axis=-1))
        return xp.stack(picked, axis=1)

    def _nearest(self, unit: Array, centre: Array, valid: Array, ops: Any) -> Array:
        """(n_pages, centroids, page): 1 where a row that is there belongs to a centroid."""
        xp = ops.xp
        near = _pages.rounded(xp.matmul(centre, xp.permute_dims(unit, (0, 2, 1))), ops)
        best = xp.argmax(near, axis=1)
        which = xp.arange(self.centroids, device=unit.device)
        return ops.to((best[:, None] == which[None, :, None]) & valid[:, None], ops.name)
