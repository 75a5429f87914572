"""Weights in bfloat16: 2 bytes a weight, 8 significant bits.

What most checkpoints hold anyway (then nothing changes); for a float32 one half the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import CheckpointError
from pronghorn.methods.weight._coded import wanted
from pronghorn.types import Array, Guarantee, Packed, Traits


@dataclass(frozen=True)
class Bf16:
    only: str = ""  # globs on tensor names, joined by +; empty: every matrix

    traits = Traits(Guarantee.APPROXIMATE)
    error = 2.0**-8  # of a row's largest magnitude

    def claims(self, name: str, shape: tuple[int, ...]) -> bool:
        return wanted(self.only, name, shape)

    def pack(self, w: NDArray[Any]) -> Packed:
        if w.dtype != ml_dtypes.bfloat16:
            with np.errstate(over="ignore"):
                w = w.astype(ml_dtypes.bfloat16)
            if not np.isfinite(w).all():
                raise CheckpointError(
                    "a weight is NaN, infinite or too large for bfloat16: keep this checkpoint's own dtype"
                )
        return Packed("bfloat16", w.shape, {"w": w})

    def matmul(self, x: Array, w: Packed, ops: Any) -> Array:
        return ops.matmul(x, ops.cast(w.fields["w"]))

    def take(self, w: Packed, rows: Array, ops: Any) -> Array:
        return ops.cast(w.fields["w"][rows])
