"""Keys and values in bfloat16: 2 bytes a value, 8 significant bits.

What a bfloat16 model stores anyway; for a float32 model half the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronghorn.types import Array, Field, Guarantee, Traits


@dataclass(frozen=True)
class Bf16:
    traits = Traits(Guarantee.APPROXIMATE)
    open = "bfloat16"
    group = 0
    error = 2.0**-8  # of a row's largest magnitude

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        raise NotImplementedError("an exact format takes the open zone's layout")

    def pack(self, k: Array, v: Array, ops: Any) -> dict[str, Array]:
        raise NotImplementedError("an exact format takes the open zone's layout")

    def unpack(self, fields: dict[str, Array], ops: Any) -> tuple[Array, Array]:
        raise NotImplementedError("an exact format takes the open zone's layout")
