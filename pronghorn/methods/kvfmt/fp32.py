"""Keys and values in float32: 4 bytes a value.

Never less accurate than the runner's own dtype, but in a bfloat16 model not the same numbers, hence not
an exact method there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronghorn.types import Array, Field, Guarantee, Traits


@dataclass(frozen=True)
class Fp32:
    traits = Traits(Guarantee.APPROXIMATE)
    open = "float32"
    group = 0
    error = 2.0**-23  # of a row's largest magnitude

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        raise NotImplementedError("an exact format takes the open zone's layout")

    def pack(self, k: Array, v: Array, ops: Any) -> dict[str, Array]:
        raise NotImplementedError("an exact format takes the open zone's layout")

    def unpack(self, fields: dict[str, Array], ops: Any) -> tuple[Array, Array]:
        raise NotImplementedError("an exact format takes the open zone's layout")
