"""A2ATS (He et al., 2025, arXiv 2502.12665): codes of keys estimate attention, and the best rows are read.

Keys are quantized to `codes` codes of 8 bits each, by codebooks that `pronghorn calibrate codebooks` makes
for each head so that the error of q . k is least, not that of k: with H = E[q^T q] = L L^T over the query
heads that share a KV head, k-means runs on k L. A query's products with the centroids are a table, and the
estimate of a row is a sum of entries of it, by the row's codes; pages are read whole, by their best row, for
any of those query heads.

Measured on the look-up model (heads of 32 channels, 8 codes): the best eighth of rows by codes has 91 % of
the true one's rows and 99 % of its weight (of the bundled model 90 % and more than 99 %), and all of 50
look-ups over 500 rows are answered by reading 32. Centroids by lot have 71 % and 92 %, and answer 47. The
error of logits is 27 % less than with plain k-means of the same books, and an eighteenth of that of one book
of 256.

Departures: WRoPE, which gives all far keys one rotation so that codebooks can be of keys before rotation, is
left out. As the model's own attention it would change what is said. As a score alone, with attention by true
positions, it was measured on the rows that lie 64 or more before a query (texts of 900 tokens, the best
eighth of those rows):

    of the true best, and of their weight    codes as here     one rotation, keys themselves    and codes
    look-up model                            91 and 99 %       39 and 60 % (distance 64)        39 and 60 %
    the bundled model                        88 and 99 %       34 and 58 %                      34 and 57 %

Distances of 256 and 512 find less, and a window of 256 changes little. Codes lose nothing there, the rotation
does: what heads of these models look for depends on where it stands. So codebooks are of rotated keys, and a
table is for contexts like those it was made with: of texts of 300 tokens it has 87 % of the best rows, and
98 % of the weight, in texts of 900. The paper has one codebook for whole keys; here
L is followed by a rotation to independent channels, dealt out to `codes` groups with a book of 256 centroids
each, as a larger book does not fit 8 bits. Pages instead of rows are read, `tokens` rows in all. Nothing is
offloaded, so memory rises by the codes. The centroids are read once for a query and a layer, which is not
counted as bytes of KV. Without a table keys stay as they are and centroids are drawn by lot: that is for
tests of what surrounds it, and finds less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pronghorn.calibrate.codebooks import Books, by_lot
from pronghorn.errors import MethodError
from pronghorn.methods._options import at_least
from pronghorn.methods.select import _pages
from pronghorn.types import Array, Choice, Field, Guarantee, Traits

NOTHING = by_lot(1, 1)


@dataclass(frozen=True)
class A2ATS(_pages.Pages):
    tokens: int = 1024  # sealed rows that a query reads, in whole pages
    codes: int = 8  # of a key; all its channels where there are no more
    dense_layers: int = 2  # first layers, which are read whole
    table: str = ""  # file of `pronghorn calibrate codebooks`; without: by lot

    def __post_init__(self) -> None:
        at_least("a2ats", self, tokens=1, codes=1, dense_layers=0)

    @property
    def traits(self) -> Traits:
        return Traits(Guarantee.APPROXIMATE, tables=(self.table,) if self.table else (), table="codebooks")

    @property
    def choice(self) -> Choice:
        return Choice("codes", _pages.whole(self.tokens))

    def of(self, tables: Mapping[str, Any], layer: int, head: int) -> _pages.Pages:
        if not self.table:
            return self
        table = tables[self.table]
        if table.groups != min(self.codes, table.shape[-1]):
            raise MethodError(
                f"a2ats: {self.table!r} has {table.groups} codes of a key: give codes={table.groups}, or "
                f"make another with `pronghorn calibrate codebooks MODEL -o FILE --codes {self.codes}`"
            )
        return _Booked(**vars(self), found=table.of(layer, head))

    def books(self, dim: int) -> Books:
        return by_lot(dim, self.codes)

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return (Field("code", "uint8", (min(self.codes, dim), page), rows=1),)

    def index(self, k: Array, valid: Array, ops: Any) -> dict[str, Array]:
        xp, books = ops.xp, self.books(k.shape[-1])
        turned = xp.matmul(_pages.filled(k, valid, ops), ops.cast(ops.array(books.turn)))
        codes = []
        for g, centroids in enumerate(books.book):
            centre, part = ops.cast(ops.array(centroids)), centroids.shape[1]
            near = xp.matmul(turned[..., g * part : (g + 1) * part], centre.T)
            near = near - 0.5 * xp.sum(centre * centre, axis=-1)
            codes.append(xp.argmax(_pages.rounded(near, ops), axis=-1))
        return {"code": xp.stack(codes, axis=1)}

    def score(self, q: Array, index: dict[str, Array], ops: Any) -> Array:
        books = self.books(q.shape[-1])
        unturn, book = (ops.cast(ops.array(a)) for a in (books.unturn, books.book))
        return _pages.scores("codes", q, index | {"unturn": unturn, "book": book}, ops)


@dataclass(frozen=True, eq=False)
class _Booked(A2ATS):
    """Of one head, whose codebooks are known."""

    found: Books = NOTHING

    def books(self, dim: int) -> Books:
        return self.found
