"""TidalDecode (Yang et al., 2024, arXiv 2410.05076): layers read what an earlier layer found.

Few layers choose: they score every key, read everything, and the layers after them read the pages of the
best scores, `tokens` rows in all, until the next one chooses. The layers before the first of `choosing`
are read whole too. Rows that matter change little from layer to layer, which is what this rests on.
Departures: pages are read whole, by their best row; a choice is one for the query heads that share a KV
head; the last sealed page is always read, and so is what is not sealed yet; rows of the prompt select too.
The paper's correction of keys that sparse steps have spoilt is left out. Nothing is kept beside the keys.
All layers must hold the same rows, so policies that keep other rows in each layer or head are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pronghorn.errors import MethodError
from pronghorn.methods._options import at_least
from pronghorn.methods.select import _pages
from pronghorn.types import Array, Choice, Field, Guarantee, Traits


@dataclass(frozen=True)
class Tidal(_pages.Pages):
    tokens: int = 256  # sealed rows that a query reads, in whole pages
    choosing: tuple[int, ...] = (2, 13)  # layers that choose, in rising order

    traits = Traits(Guarantee.APPROXIMATE)

    def __post_init__(self) -> None:
        at_least("tidal", self, tokens=1)
        if not self.choosing or self.choosing[0] < 0 or sorted(set(self.choosing)) != list(self.choosing):
            raise MethodError(f"tidal: choosing names layers in rising order, not {self.choosing}")

    @property
    def choice(self) -> Choice:
        return Choice("keys", _pages.whole(self.tokens, 2), last=1)

    def sources(self, n_layers: int) -> Sequence[int]:
        out = []
        for i in range(n_layers):
            before = [c for c in self.choosing if c < i]
            out.append(before[-1] if before and i not in self.choosing else -1)
        return out

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return ()

    def index(self, k: Array, valid: Array, ops: Any) -> dict[str, Array]:
        return {}
