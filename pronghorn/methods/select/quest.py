"""Quest (Tang et al., 2024, arXiv 2406.10774): a query reads the pages that can matter to it.

A page keeps the smallest and the largest value of each key channel. Their products with the query bound
every score of the page from above; the pages of the largest bounds, `tokens` rows in all, are read. Query
heads that share a KV head read the same pages, by the largest bound of any of them. Departures: rows of
the prompt select too, as there are no phases here; bounds are rounded and ties go to the earlier page, so
that the last bits of a product do not decide. Memory does not fall (it rises by the bounds); what is read
does. The native runner calls back into Python for the choice, layer by layer, which costs more than it saves
at the lengths that bench/kv.py runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE
from pronghorn.types import Array, Field, Guarantee, Selection, Traits

STEPS = 4096  # a bound is rounded to this fraction of the largest


@dataclass(frozen=True)
class Quest:
    tokens: int = 1024  # sealed rows that a query reads, in whole pages; at least 3 pages
    dense_layers: int = 2  # first layers, which are read whole

    traits = Traits(Guarantee.APPROXIMATE)

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise MethodError(f"quest: tokens is 1 or above, not {self.tokens}")
        if self.dense_layers < 0:
            raise MethodError(f"quest: dense_layers is 0 or above, not {self.dense_layers}")

    @property
    def dense(self) -> bool:
        return False

    def layers(self, n_layers: int) -> Sequence[int]:
        return range(self.dense_layers, n_layers)

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return (Field("lo", "float32", (dim,), rows=-1), Field("hi", "float32", (dim,), rows=-1))

    def index(self, k: Array, valid: Array, ops: Any) -> dict[str, Array]:
        xp = ops.xp
        here = valid[..., None]  # (n_pages, page, 1)
        lo = xp.min(xp.where(here, k, xp.full_like(k, math.inf)), axis=1)
        hi = xp.max(xp.where(here, k, xp.full_like(k, -math.inf)), axis=1)
        return {"lo": lo, "hi": hi}

    def select(self, q: Array, index: dict[str, Array], ops: Any) -> Selection:
        xp = ops.xp
        n_rows, n_pages = q.shape[0], index["lo"].shape[0]
        wanted = max(3, -(-self.tokens // PAGE))
        if n_pages <= wanted:
            return Selection(xp.ones((n_rows, n_pages), dtype=xp.bool, device=q.device))
        bound = self.bound(q, index, ops)
        top = xp.max(xp.abs(bound), axis=-1, keepdims=True)
        step = xp.where(top > 0, top / STEPS, xp.ones_like(top))
        order = xp.argsort(-xp.round(bound / step), axis=-1, stable=True)
        rank = xp.argsort(order, axis=-1, stable=True)
        return Selection(rank < wanted)

    def bound(self, q: Array, index: dict[str, Array], ops: Any) -> Array:
        """(n_rows, n_pages): no q . k of the page is larger, for any of the query's g heads."""
        xp = ops.xp
        zero = xp.zeros_like(q)
        up = xp.matmul(xp.where(q > 0, q, zero), index["hi"].T)  # (n_rows, g, n_pages)
        down = xp.matmul(xp.where(q < 0, q, zero), index["lo"].T)
        return xp.max(up + down, axis=1)
