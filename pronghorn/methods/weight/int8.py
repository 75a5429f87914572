"""Weights in 8 bits: symmetric, one scale for each output channel, rounded to nearest (the vector-wise
scheme of LLM.int8, Dettmers et al., 2022, arXiv 2208.07339, without its outlier decomposition).

Activations stay as they are. A weight is off by half its channel's scale at most, which is the channel's
largest magnitude / 127. The embedding is stored so too, its rows being the channels; a tied head shares
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import CheckpointError
from pronghorn.types import Array, Guarantee, Packed, Traits

ROWS = 1024  # rows widened at a time


@dataclass(frozen=True)
class Int8:
    traits = Traits(Guarantee.APPROXIMATE)
    error = (1 + 2.0**-16) / 254  # of a row's largest magnitude

    def claims(self, name: str, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2

    def pack(self, w: NDArray[Any]) -> Packed:
        code = np.empty(w.shape, np.int8)
        scale = np.empty(w.shape[0], np.float32)
        for i in range(0, len(w), ROWS):
            part = np.asarray(w[i : i + ROWS], np.float32)
            top = np.abs(part).max(axis=1, initial=0)
            if not np.isfinite(top).all():
                raise CheckpointError(
                    "a weight is NaN or infinite and has no 8-bit form: the checkpoint is damaged"
                )
            by = top / np.float32(127)
            scale[i : i + ROWS] = by
            by = np.where(by > 0, by, np.float32(1))[:, None]
            code[i : i + ROWS] = np.clip(np.rint(part / by), -127, 127)
        return Packed("int8", w.shape, {"w": code, "scale": scale})

    def matmul(self, x: Array, w: Packed, ops: Any) -> Array:
        return ops.matmul(x, ops.cast(w.fields["w"])) * ops.cast(w.fields["scale"])

    def take(self, w: Packed, rows: Array, ops: Any) -> Array:
        return ops.cast(w.fields["w"][rows]) * ops.cast(w.fields["scale"][rows])[:, None]
