"""Weights in 8-bit floats, E4M3 (Micikevicius et al., 2022, arXiv 2209.05433), one scale for each output.

4 significant bits at any magnitude within 1/28,672 of the row's largest, which maps to 448, the largest
value there is. At 8 bits `int8` is the more precise of the two for weights; this one is for checkpoints and
hardware that think in it. The scale is that of the largest magnitude: a float's relative error hardly depends
on it, so there is nothing to search for.
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

ROWS = 1024  # rows widened at a time
LARGEST = np.float32(448)
VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)  # of each code


@dataclass(frozen=True)
class Fp8:
    only: str = ""  # globs on tensor names, joined by +; empty: every matrix

    traits = Traits(Guarantee.APPROXIMATE)
    error = 16.5 / 448  # of a row's largest magnitude: half of the widest step, and the scale's own rounding

    def claims(self, name: str, shape: tuple[int, ...]) -> bool:
        return wanted(self.only, name, shape)

    def pack(self, w: NDArray[Any]) -> Packed:
        code = np.empty(w.shape, np.uint8)
        scale = np.empty(w.shape[0], np.float32)
        for i in range(0, len(w), ROWS):
            part = np.asarray(w[i : i + ROWS], np.float32)
            top = np.abs(part).max(axis=1, initial=0)
            if not np.isfinite(top).all():
                raise CheckpointError(
                    "a weight is NaN or infinite and has no 8-bit form: the checkpoint is damaged"
                )
            by = np.where(top > 0, top / LARGEST, np.float32(1))
            by = np.maximum(by, np.finfo(np.float32).tiny)
            scale[i : i + ROWS] = by
            inside = np.clip(part / by[:, None], -LARGEST, LARGEST)
            code[i : i + ROWS] = inside.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        return Packed("float8", w.shape, {"w": code, "scale": scale})

    def matmul(self, x: Array, w: Packed, ops: Any) -> Array:
        return ops.matmul(x, _values(w.fields["w"], ops)) * ops.cast(w.fields["scale"])

    def take(self, w: Packed, rows: Array, ops: Any) -> Array:
        return _values(w.fields["w"][rows], ops) * ops.cast(w.fields["scale"][rows])[:, None]


def _values(code: Array, ops: Any) -> Array:
    return ops.cast(ops.array(VALUES[ops.numpy(code)]))
