"""Quest (Tang et al., 2024, arXiv 2406.10774): a query reads the pages that can matter to it.

A page keeps the smallest and the largest value of each key channel. Their products with the query bound
every score of the page from above; the pages of the largest bounds, `tokens` rows in all, are read. Query
heads that share a KV head read the same pages, by the largest bound of any of them. Departures: rows of
the prompt select too, as there are no phases here; bounds are kept as bfloat16, rounded outwards, so that
they take a sixteenth of the page; they are compared on a grid and ties go to the earlier page, so that the
last bits of a product do not decide. Memory does not fall (it rises by the bounds); what is read does.
"""

from __future__ import annotations

from dataclasses import dataclass

from pronghorn.methods._options import at_least
from pronghorn.methods.select import _pages
from pronghorn.types import Choice, Guarantee, Traits


@dataclass(frozen=True)
class Quest(_pages.Boxes):
    tokens: int = 1024  # sealed rows that a query reads, in whole pages; at least 3 pages
    dense_layers: int = 2  # first layers, which are read whole

    traits = Traits(Guarantee.APPROXIMATE)

    def __post_init__(self) -> None:
        at_least("quest", self, tokens=1, dense_layers=0)

    @property
    def choice(self) -> Choice:
        return Choice("bounds", _pages.whole(self.tokens, 3))
