"""ZipCache's channel-separable tokenwise quantization (He et al., 2024, arXiv 2405.14256, section 4.1):
values of a channel are divided by the root of its largest magnitude, then each row has one scale and one
offset; keys are rounded by channel.

Only this half of the method is here: all rows have the same number of bits. The other half, fewer bits for
rows that attention finds unimportant, needs scores where rows are packed. Departures: a channel's largest
magnitude, and a channel of keys' range, are those of a page of 16 rows, where the paper takes the whole
prompt; scales and offsets are bfloat16; rows that a policy keeps on are rounded again with their new
neighbours.

The error of a value is in units of the largest magnitude of its page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE, coded_fields
from pronghorn.methods.kvfmt import _codes
from pronghorn.types import ROW, Array, Codes, Field, Guarantee, Traits


@dataclass(frozen=True)
class ZipCache:
    bits: int = 4  # of a code, 2 or 4

    traits = Traits(Guarantee.APPROXIMATE)
    open = "own"
    group = PAGE

    def __post_init__(self) -> None:
        if self.bits not in (2, 4):
            raise MethodError(f"zipcache: bits is 2 or 4, not {self.bits}")

    @property
    def error(self) -> float:
        return (1 + 2.0**-5) / ((1 << self.bits) - 1)

    @property
    def codes(self) -> tuple[Codes, Codes]:
        return Codes(self.bits, group=0), Codes(self.bits, ROW, channels=True)

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return coded_fields(*self.codes, dim)

    def pack(self, k: Array, v: Array, ops: Any) -> dict[str, Array]:
        keys, values = self.codes
        packed = _codes.pack_channels(k, keys, ops), self._separated(v, values, ops)
        return _codes.fields_of(*packed, self.codes, ops)

    def unpack(self, fields: dict[str, Array], dim: int, ops: Any) -> tuple[Array, Array]:
        return _codes.unpack(fields, self.codes, dim, ops)

    def _separated(self, v: Array, codes: Codes, ops: Any) -> tuple[Array, Array]:
        """Codes of v (n, page, dim), and the factors of rows, then those of channels, (n, 2 * page + dim)."""
        xp = ops.xp
        by = _codes.bfloat(xp.sqrt(xp.max(xp.abs(v), axis=1, keepdims=True)), ops)
        code, factors = _codes.pack_rows(v / xp.where(by > 0, by, xp.ones_like(by)), codes, ops, 0.0)
        flat = factors.reshape((len(v), 2 * v.shape[1]))
        return code, xp.concat([flat, ops.to(by, "bfloat16")[:, 0]], axis=-1)
