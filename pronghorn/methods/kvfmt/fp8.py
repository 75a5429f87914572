"""Keys and values in 8-bit floating point, E4M3 (Micikevicius et al., 2022, arXiv 2209.05433): one scale
for each row of each head.

A row's scale is its largest magnitude / 448, rounded to bfloat16; codes are the nearest numbers of E4M3.
Relative to `int8` large values are coarser and small ones finer, which suits rows with a few large
channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronghorn.kv.layout import coded_fields
from pronghorn.methods.kvfmt import _codes
from pronghorn.types import ROW, Array, Codes, Field, Guarantee, Traits

CODES = Codes(bits=8, group=ROW, offset=False)


@dataclass(frozen=True)
class Fp8:
    traits = Traits(Guarantee.APPROXIMATE)
    bare = False  # the name alone is a weight format's
    open = "own"
    group = 1
    codes = (CODES, CODES)
    error = (1 + 2.0**-8) * 16 / 448  # half of the largest step, in units of a row's largest magnitude

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return coded_fields(CODES, CODES, dim)

    def pack(self, k: Array, v: Array, ops: Any) -> dict[str, Array]:
        return _codes.fields_of(self._rows(k, ops), self._rows(v, ops), (CODES, CODES), ops)

    def unpack(self, fields: dict[str, Array], dim: int, ops: Any) -> tuple[Array, Array]:
        return _codes.unpack(fields, (CODES, CODES), dim, ops)

    def _rows(self, x: Array, ops: Any) -> tuple[Array, Array]:
        """x (n, page, dim) -> codes, factors (n, 1, 1, page)."""
        xp = ops.xp
        scale = _codes.bfloat(xp.max(xp.abs(x), axis=-1) / _codes.E4M3[-1], ops)
        by = xp.where(scale > 0, scale, xp.ones_like(scale))[..., None]
        code = ops.view(ops.to(ops.to(x / by, "float32"), "float8_e4m3fn"), "uint8")
        return code, ops.to(scale, "bfloat16")[:, None, None]
