"""GEAR (Kang et al., 2024, arXiv 2403.05527): rounded numbers, a matrix of low rank near what they are off
by, and a few numbers that stand as they are.

As in KIVI a channel of keys has a scale and an offset for the 16 rows of a page, a row of values has them
for every 64 channels. Of a page's keys, and of its values, `outliers` of the numbers are kept in bfloat16
with their places: largest or smallest ones of a channel or of a row, where rounding gains most. What the
others are off by is met by a product of `rank`, three loops of power iteration from its longest row on;
factors are bfloat16, and a row's factor is cut where something would be off by more than the rounding's
largest error.

Departures: all parts are a page's, of 16 rows, where the paper takes a prompt of rows for all three (rank 4)
and buffers of later ones (rank 2): rank 1 of a page costs what 16 rows and all channels cost, 160 bytes at
64 channels; outliers are the best of a page, where the paper takes as many of each channel or row; the 4-bit
variant has groups of 64 channels too. Rows behind the last barrier stay exact, which is the paper's buffer.
Rows that a policy keeps on are rounded again with their new neighbours.

At 64 channels a page takes 33 % of bfloat16's bytes with `bits=2` and 45 % with 4, at 32 channels 41 and
53 %, places, factors and lines that are filled up included. The error of a value is in units of the largest
magnitude of its page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE, coded_fields, n_spikes
from pronghorn.methods.kvfmt import _beside, _codes
from pronghorn.types import Array, Codes, Field, Guarantee, Traits

OUTLIERS = 0.03  # at most: a row of 64 channels has no more than two


@dataclass(frozen=True)
class Gear:
    bits: int = 4  # of a code, 2 or 4
    rank: int = 1  # of the matrix that is added; 0: none
    outliers: float = 0.015  # share of numbers that stand as they are

    traits = Traits(Guarantee.APPROXIMATE)
    open = "own"
    group = PAGE

    def __post_init__(self) -> None:
        if self.bits not in (2, 4):
            raise MethodError(f"gear: bits is 2 or 4, not {self.bits}")
        if self.rank not in (0, 1, 2):
            raise MethodError(f"gear: rank is 0, 1 or 2, not {self.rank}")
        if not 0 <= self.outliers <= OUTLIERS:
            raise MethodError(f"gear: outliers is 0 to {OUTLIERS}, not {self.outliers}")

    @property
    def error(self) -> float:
        return (1 + 2.0**-4) / ((1 << self.bits) - 1)

    @property
    def codes(self) -> tuple[Codes, Codes]:
        keys = Codes(self.bits, group=0, rank=self.rank, spikes=self.outliers)
        return keys, replace(keys, group=64)

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return coded_fields(*self.codes, dim)

    def pack(self, k: Array, v: Array, ops: Any) -> dict[str, Array]:
        keys, values = self.codes
        (kc, ks), (vc, vs) = self._part(k, keys, ops), self._part(v, values, ops)
        fields = _codes.fields_of(kc, vc, self.codes, ops)
        return {**fields, "ks": ks, "vs": vs} if n_spikes(keys, k.shape[2]) else fields

    def unpack(self, fields: dict[str, Array], dim: int, ops: Any) -> tuple[Array, Array]:
        return _codes.unpack(fields, self.codes, dim, ops)

    def _part(self, x: Array, c: Codes, ops: Any) -> tuple[tuple[Array, Array], Array]:
        """Codes and factors of x (n, page, dim), and its spikes."""
        n, _, dim = x.shape
        plain, spikes = _beside.take_spikes(x, c.group, n_spikes(c, dim), ops)
        if c.group:
            code, factors = _codes.pack_rows(plain, c, ops, 0.0)
        else:
            code, factors = _codes.pack_channels(plain, c, ops)
        if c.rank:
            off = plain - _codes.values_of(code, factors, replace(c, rank=0), ops)
            low = _beside.low_rank(_beside.with_spikes(off, spikes, ops, 0.0), c.rank, ops)
            flat = factors.reshape((n, math.prod(factors.shape[1:])))
            factors = ops.xp.concat([flat, low], axis=1)
        return (code, factors), spikes
