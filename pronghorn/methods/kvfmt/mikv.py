"""MiKV (Yang et al., 2024, arXiv 2402.18096): what eviction would drop is kept in 2 bits.

Of a page of 16 rows the `salient` ones have codes of 4 bits and the others of 2. They are those to which the
queries since the last barrier gave most attention in sum, as H2O counts it, over the query heads that share
the KV head: of a prompt of up to 2,048 tokens all its queries, of an answer those of its last 64. A row is
rounded once, when it is sealed, so one that lost importance never regains precision, as in the paper; rows
that a policy keeps on are rounded again with their new neighbours, by what queries said last. Rows have a
scale and an offset for every 64 channels.

`balance` is the paper's outlier balancer: a channel of keys is divided by the root of its largest magnitude
in the page over that of the queries, so that what rounding does to a score is spread over channels. Queries
whose magnitude is below 1/16 of the largest count as that.

Departures: each page has as many salient rows, where the paper takes them from a whole prompt (what a sum
owes to a row's age hardly differs within 16); the important rows have 4 bits and not 8 or 16, as both kinds
are one formula with one scale; rows behind the last barrier are exact. Queries decide, so that rows are not
shared between requests, and they are held up to the next barrier: 86 KB for each row of a prompt that runs,
where 24 layers have 14 heads of 64.

At 64 channels a page takes 22 % of bfloat16's bytes, 19 % without `balance`. What attention gives the queries
behind a prompt is off by 34 % of its length on the look-up model and 52 to 55 % on the bundled one; 44 and 55
to 61 % where the least important rows have the bits, 36 and 62 to 65 % without `balance`; `kivi`, in as many
bytes, is off by 39 and 43 to 44 %. Keys that the look-up model is asked for are found all the same, also with
2 bits for all rows, so that more for some cannot help there. Of spans that it copies 76 % of the words are
right, and 77 % where the least important rows have the bits: what a prompt's queries looked at is not what is
asked for later. `kivi` has 93 % right.

The error of a value is in units of the largest magnitude of its page; where queries balance it is up to 4
times as large in channels that they hardly use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE, coded_fields
from pronghorn.kv.view import KVView, rounded
from pronghorn.methods.kvfmt import _beside, _codes, _salient
from pronghorn.types import Array, Codes, Field, Guarantee, Said, Traits

GROUP = 64  # channels of a row with factors in common
LEAST = 2.0**-4  # magnitude of a channel of queries, of the largest


@dataclass(frozen=True)
class Mikv:
    salient: int = 3  # rows of a page of 16 that have 4 bits; the others have 2
    balance: bool = True  # whether channels of keys are balanced by those of queries

    traits = Traits(Guarantee.APPROXIMATE, taps=("q.new",))
    open = "own"
    group = PAGE
    error = (1 + 2.0**-5) / 3

    def __post_init__(self) -> None:
        if not 1 <= self.salient < PAGE:
            raise MethodError(f"mikv: salient is 1 to {PAGE - 1}, not {self.salient}")

    @property
    def codes(self) -> tuple[Codes, Codes]:
        return (
            Codes(2, GROUP, channels=self.balance, salient=self.salient),
            Codes(2, GROUP, salient=self.salient),
        )

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return coded_fields(*self.codes, dim)

    def look(self, view: KVView, taps: dict[str, NDArray[Any]]) -> Said:
        said = np.zeros((view.n_layers, view.n_kv, view.n))
        for layer, q in enumerate(taps["q"]):
            said[layer] = view.by_kv_head(view.mass(layer, q, taps["q_pos"]))
        q = np.abs(taps["q"])  # (L, heads, r, dim)
        top = q.reshape(view.n_layers, view.n_kv, -1, q.shape[-1]).max(axis=2)
        return Said(rounded(said), rounded(top))

    def pack(self, k: Array, v: Array, ops: Any) -> dict[str, Array]:
        ones = ops.xp.ones((k.shape[2],), dtype=k.dtype, device=k.device)
        return self.pack_by(k, v, ops.xp.zeros_like(k[..., 0]), ones, ops)

    def pack_by(self, k: Array, v: Array, rows: Array, channels: Array, ops: Any) -> dict[str, Array]:
        keys, values = (_salient.wide(c) for c in self.codes)
        if self.balance:
            packed = _salient.separated(k, _balance(k, channels, ops), keys, ops)
        else:
            packed = _codes.pack_rows(k, keys, ops, 0.0)
        mask = _beside.most(rows, self.salient, ops)
        return _salient.fields_of(packed, _codes.pack_rows(v, values, ops, 0.0), mask, self.codes, ops)

    def unpack(self, fields: dict[str, Array], dim: int, ops: Any) -> tuple[Array, Array]:
        return _codes.unpack(fields, self.codes, dim, ops)


def _balance(k: Array, top: Array, ops: Any) -> Array:
    """What channels of k (n, page, dim) are divided by, (n, 1, dim); top: magnitudes of those of queries."""
    xp = ops.xp
    most = xp.max(top)
    by = xp.clip(top / xp.where(most > 0, most, xp.ones_like(most)), LEAST, None)
    return xp.sqrt(xp.max(xp.abs(k), axis=1, keepdims=True) / ops.to(by, str(k.dtype).removeprefix("torch.")))
