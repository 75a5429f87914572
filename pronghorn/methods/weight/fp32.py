"""Weights in float32, whatever the checkpoint stores: exact, and the reference for other formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.types import Array, Guarantee, Packed, Traits


@dataclass(frozen=True)
class Fp32:
    traits = Traits(Guarantee.EXACT)

    def claims(self, name: str, shape: tuple[int, ...]) -> bool:
        return True

    def pack(self, w: NDArray[Any]) -> Packed:
        return Packed("float32", w.shape, {"w": w.astype(np.float32)})

    def matmul(self, x: Array, w: Packed, ops: Any) -> Array:
        return ops.matmul(x, ops.cast(w.fields["w"]))

    def take(self, w: Packed, rows: Array, ops: Any) -> Array:
        return ops.cast(w.fields["w"][rows])
