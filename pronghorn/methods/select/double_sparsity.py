"""Double sparsity (Yang et al., 2024, arXiv 2408.07092): a few channels of each key say which rows matter.

A page keeps, for each of its rows, `channels` channels of its key, as 8-bit labels with a factor for each
channel; the query's product with them stands for the score. Which channels: those of a table that `pronghorn
calibrate channels` makes, one list for each head, by the mean of |q_c k_c| on texts, as in the paper; without
a table each page has its own, those in which its keys are largest on average (one of the measures that the
paper's authors offer), so nothing is calibrated and a page's list fits its keys.

Compared on heads of 32 channels: of the bundled model, the eighth of rows that 8 channels (r = 4) take for
the best has 63 % of the rows of the true one and 88 % of its weight with a table, 62 % and 88 % without; 16
channels have 79 % and 98 % either way. Of the look-up model 8 have 53 % and 79 %, and 52 % and 77 %. Of 50
look-ups over 500 rows that read 64, 8 channels answer 26 with a table of 16 texts, 40 with one of 10 and 39
without; 16 answer 49, and 50 without. So the paper's r = 4 is too few for heads as small as these, and a
table does not pay on them; where some channels are much larger than others, r = 4 finds nine in ten of the
best rows either way.

Departures: labels have 8 bits instead of 4. Query heads that share a KV head share a list. Pages are read
whole, by their best row, for any of those query heads, as memory serves pages. Rows of the prompt select
too. Nothing is offloaded, so memory rises by the labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pronghorn.methods._options import at_least
from pronghorn.methods.select import _pages
from pronghorn.types import Array, Choice, Field, Guarantee, Ints, Traits


@dataclass(frozen=True)
class DoubleSparsity(_pages.Pages):
    tokens: int = 1024  # sealed rows that a query reads, in whole pages
    channels: int = 16  # of each key; all where there are no more
    dense_layers: int = 2  # first layers, which are read whole
    table: str = ""  # file of `pronghorn calibrate channels` that says which; without: each page's largest

    def __post_init__(self) -> None:
        at_least("double-sparsity", self, tokens=1, channels=1, dense_layers=0)

    @property
    def traits(self) -> Traits:
        return Traits(Guarantee.APPROXIMATE, tables=(self.table,) if self.table else (), table="channels")

    @property
    def choice(self) -> Choice:
        return Choice("labels", _pages.whole(self.tokens))

    def of(self, tables: Mapping[str, Any], layer: int, head: int) -> _pages.Pages:
        if not self.table:
            return self
        best = tables[self.table].best(layer, head, min(self.channels, 256))
        return _Listed(**vars(self), best=tuple(best.tolist()))

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        n = min(self.channels, dim, 256)
        return (
            Field("channel", "uint8", (n,), rows=-1), Field("label", "int8", (n, page), rows=1),
            Field("unit", "float32", (n,), rows=-1),
        )  # fmt: skip

    def index(self, k: Array, valid: Array, ops: Any) -> dict[str, Array]:
        xp = ops.xp
        k = _pages.filled(k, valid, ops)
        channel = self._channels(k, valid, ops)
        rows = xp.permute_dims(k, (0, 2, 1))[xp.arange(k.shape[0], device=k.device)[:, None], channel]
        top = xp.max(xp.abs(rows), axis=-1)
        unit = ops.cast(ops.to(xp.where(top > 0, top / 127, xp.ones_like(top)), "float32"))
        label = xp.round(rows / unit[..., None])
        return {"channel": channel, "label": xp.clip(label, -127, 127), "unit": unit}

    def _channels(self, k: Array, valid: Array, ops: Any) -> Array:
        """(n_pages, channels)"""
        xp = ops.xp
        n = min(self.channels, k.shape[-1], 256)
        here = ops.to(valid, ops.name)[..., None]
        size = _pages.rounded(xp.sum(xp.abs(k) * here, axis=1) / xp.sum(here, axis=1), ops)
        return xp.argsort(-size, axis=-1, stable=True)[:, :n]


@dataclass(frozen=True)
class _Listed(DoubleSparsity):
    """Of one head, whose channels are known."""

    best: tuple[int, ...] = ()

    def _channels(self, k: Array, valid: Array, ops: Any) -> Array:
        best: Ints = np.array([self.best], np.int64)
        return ops.xp.broadcast_to(ops.array(best), (k.shape[0], len(self.best)))
