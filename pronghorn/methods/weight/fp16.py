"""Weights in float16: 2 bytes a weight, 11 significant bits where their magnitude is above 6e-5.

For a float32 checkpoint half the memory with eight times the precision of bfloat16, but a narrow range:
weights past 65,504 are refused, and those below 6e-5 are off by up to 3e-8 whatever their size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import CheckpointError
from pronghorn.methods.weight._coded import wanted
from pronghorn.types import Array, Guarantee, Packed, Traits


@dataclass(frozen=True)
class Fp16:
    only: str = ""  # globs on tensor names, joined by +; empty: every matrix

    traits = Traits(Guarantee.APPROXIMATE)
    error = 2.0**-11  # of a row's largest magnitude, where that is above 6e-5

    def claims(self, name: str, shape: tuple[int, ...]) -> bool:
        return wanted(self.only, name, shape)

    def pack(self, w: NDArray[Any]) -> Packed:
        if w.dtype != np.float16:
            with np.errstate(over="ignore"):
                w = w.astype(np.float16)
        if not np.isfinite(w).all():
            raise CheckpointError(
                "a weight is NaN, infinite or too large for float16: keep this checkpoint's own dtype"
            )
        return Packed("float16", w.shape, {"w": w})

    def matmul(self, x: Array, w: Packed, ops: Any) -> Array:
        return ops.matmul(x, ops.cast(w.fields["w"]))

    def take(self, w: Packed, rows: Array, ops: Any) -> Array:
        return ops.cast(w.fields["w"][rows])
