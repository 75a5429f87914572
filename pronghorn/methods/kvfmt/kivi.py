"""KIVI (Liu et al., 2024, arXiv 2402.02750): keys in 2 bits by channel, values in 2 bits by token,
asymmetric.

A channel of keys has a scale and an offset for the 16 rows of a page, a row of values has them for every
32 channels. Rows behind the last barrier stay exact, which is the paper's residual of recent tokens: up to
a step of the barriers' grid, not a fixed number. Departures: groups of keys are a page of 16 rows where
the paper takes 32, so that keys take 4 bits a value with their factors in bfloat16, and values 3; rows
that a policy keeps on are rounded again with their new neighbours. `bits=4` is the paper's 4-bit variant.

The error of a value is in units of the largest magnitude of its page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE, coded_fields
from pronghorn.methods.kvfmt import _codes
from pronghorn.types import Array, Codes, Field, Guarantee, Traits


@dataclass(frozen=True)
class Kivi:
    bits: int = 2  # of a code, 2 or 4

    traits = Traits(Guarantee.APPROXIMATE)
    open = "own"
    group = PAGE

    def __post_init__(self) -> None:
        if self.bits not in (2, 4):
            raise MethodError(f"kivi: bits is 2 or 4, not {self.bits}")

    @property
    def error(self) -> float:
        return (1 + 2.0**-5) / ((1 << self.bits) - 1)

    @property
    def codes(self) -> tuple[Codes, Codes]:
        return Codes(self.bits, group=0), Codes(self.bits, group=32)

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return coded_fields(*self.codes, dim)

    def pack(self, k: Array, v: Array, ops: Any) -> dict[str, Array]:
        keys, values = self.codes
        packed = _codes.pack_channels(k, keys, ops), _codes.pack_rows(v, values, ops, 0.0)
        return _codes.fields_of(*packed, self.codes, ops)

    def unpack(self, fields: dict[str, Array], dim: int, ops: Any) -> tuple[Array, Array]:
        return _codes.unpack(fields, self.codes, dim, ops)
