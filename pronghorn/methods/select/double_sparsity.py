"""Double sparsity (Yang et al., 2024, arXiv 2408.07092): a few channels of each key say which rows matter.

A page keeps, for each of its rows, the `channels` channels in which its keys are largest on average, as
8-bit labels with a factor for each channel; the query's product with them stands for the score.
Departures: the paper calibrates one list of channels for each head ahead, on texts, by mean |q_c k_c|.
Here every page has its own, by mean |k_c| (one of the measures that its authors offer), so nothing is
calibrated, keys that a policy rewrites are labelled anew, and a page's list fits its keys. Labels have 8
bits instead of 4. Pages are read whole, by their best row, for any of the query heads that share a KV
head, as memory serves pages. Rows of the prompt select too. Nothing is offloaded, so memory rises by the
labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronghorn.methods._options import at_least
from pronghorn.methods.select import _pages
from pronghorn.types import Array, Choice, Field, Guarantee, Traits


@dataclass(frozen=True)
class DoubleSparsity(_pages.Pages):
    tokens: int = 1024  # sealed rows that a query reads, in whole pages
    channels: int = 16  # of each key; all where there are no more
    dense_layers: int = 2  # first layers, which are read whole

    traits = Traits(Guarantee.APPROXIMATE)

    def __post_init__(self) -> None:
        at_least("double-sparsity", self, tokens=1, channels=1, dense_layers=0)

    @property
    def choice(self) -> Choice:
        return Choice("labels", _pages.whole(self.tokens))

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        n = min(self.channels, dim, 256)
        return (
            Field("channel", "uint8", (n,), rows=-1), Field("label", "int8", (n, page), rows=1),
            Field("unit", "float32", (n,), rows=-1),
        )  # fmt: skip

    def index(self, k: Array, valid: Array, ops: Any) -> dict[str, Array]:
        xp = ops.xp
        n = min(self.channels, k.shape[-1], 256)
        k = _pages.filled(k, valid, ops)
        here = ops.to(valid, ops.name)[..., None]
        size = _pages.rounded(xp.sum(xp.abs(k) * here, axis=1) / xp.sum(here, axis=1), ops)
        channel = xp.argsort(-size, axis=-1, stable=True)[:, :n]
        rows = xp.permute_dims(k, (0, 2, 1))[xp.arange(k.shape[0], device=k.device)[:, None], channel]
        top = xp.max(xp.abs(rows), axis=-1)
        unit = ops.cast(ops.to(xp.where(top > 0, top / 127, xp.ones_like(top)), "float32"))
        label = xp.round(rows / unit[..., None])
        return {"channel": channel, "label": xp.clip(label, -127, 127), "unit": unit}
