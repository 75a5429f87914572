"""Weights in float32, whatever the checkpoint stores.

Nothing of a weight is lost, but float32 arithmetic is not the plain path of a bfloat16 checkpoint, whose
activations are rounded: tokens can differ at near-ties, so this is declared approximate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.methods.weight._coded import wanted
from pronghorn.types import Array, Guarantee, Packed, Traits


@dataclass(frozen=True)
class Fp32:
    only: str = ""  # globs on tensor names, joined by +; empty: every matrix

    error = 0.0  # no weight changes

    traits = Traits(Guarantee.APPROXIMATE)

    def claims(self, name: str, shape: tuple[int, ...]) -> bool:
        return wanted(self.only, name, shape)

    def pack(self, w: NDArray[Any]) -> Packed:
        return Packed("float32", w.shape, {"w": w.astype(np.float32)})

    def matmul(self, x: Array, w: Packed, ops: Any) -> Array:
        return ops.matmul(x, ops.cast(w.fields["w"]))

    def take(self, w: Packed, rows: Array, ops: Any) -> Array:
        return ops.cast(w.fields["w"][rows])
