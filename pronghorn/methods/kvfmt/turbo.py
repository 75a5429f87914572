"""TurboQuant (Zandieh et al., 2025, arXiv 2504.19874), the variant for least squared error: keys and
values are turned at random, after which every coordinate of a row is nearly normal, and rounded to the
levels that are best for a normal distribution (Lloyd-Max), in units of the row's norm over the root of its
length.

Departures: the rotation is Hadamard's matrix after fixed random signs (as in QuaRot) and the same for all
heads, since it costs a sixth of a dense one; scales are bfloat16; no bits go to the sketch of the residual
that makes inner products unbiased, nor to outlier channels. A query is turned once, and sums of values
once for 256 rows.

The error is one of a whole row: the length of what it is off by, in units of its own length. What is
declared holds for any row of 8 channels; a longer one along a direction of the rotation itself would be
off by more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE, coded_fields
from pronghorn.methods.kvfmt import _codes
from pronghorn.types import ROW, Array, Codes, Field, Guarantee, Traits

HALF = {
    2: (0.4528, 1.5104),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326),
}
LEVELS = {bits: tuple(-x for x in reversed(half)) + half for bits, half in HALF.items()}


@dataclass(frozen=True)
class Turbo:
    bits: int = 4  # of a code, 2 or 4

    traits = Traits(Guarantee.APPROXIMATE)
    open = "own"
    group = PAGE
    unit = "length"

    def __post_init__(self) -> None:
        if self.bits not in HALF:
            raise MethodError(f"turbo: bits is 2 or 4, not {self.bits}")

    @property
    def error(self) -> float:
        return 0.2 if self.bits == 4 else 0.64

    @property
    def codes(self) -> tuple[Codes, Codes]:
        one = Codes(self.bits, ROW, offset=False, levels=LEVELS[self.bits], turn=True)
        return one, one

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return coded_fields(*self.codes, dim)

    def pack(self, k: Array, v: Array, ops: Any) -> dict[str, Array]:
        return _codes.fields_of(self._rows(k, ops), self._rows(v, ops), self.codes, ops)

    def unpack(self, fields: dict[str, Array], dim: int, ops: Any) -> tuple[Array, Array]:
        return _codes.unpack(fields, self.codes, dim, ops)

    def _rows(self, x: Array, ops: Any) -> tuple[Array, Array]:
        """x (n, page, dim) -> codes, factors (n, 1, 1, page)."""
        xp = ops.xp
        top = xp.max(xp.abs(x), axis=-1, keepdims=True)  # squares of large numbers would overflow
        y = x / xp.where(top > 0, top, xp.ones_like(top))
        length = top[..., 0] * xp.sqrt(xp.mean(y * y, axis=-1))
        scale = _codes.bfloat(length, ops)
        by = xp.where(scale > 0, scale, xp.ones_like(scale))[..., None]
        code = _codes.nearest(_codes.turn(x / by, ops), np.array(LEVELS[self.bits]), ops)
        return code, ops.to(scale, "bfloat16")[:, None, None]
