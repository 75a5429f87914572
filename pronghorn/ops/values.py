"""Numbers out of weights, whatever form they are kept in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pronghorn.ops.codes import Codes
from pronghorn.ops.panels import unpack
from pronghorn.types import Packed


def dense(weights: NDArray[Any] | Codes | Packed) -> NDArray[Any]:
    """The matrix: arrays as they are, codes and packed weights in float32."""
    if isinstance(weights, Codes):
        return weights.dense()
    if not isinstance(weights, Packed):
        return weights
    if weights.grid is not None:
        return unpack(weights).dense()
    values: NDArray[Any] = np.asarray(weights.fields["w"])
    if weights.kind == "float8":
        scale = np.asarray(weights.fields["scale"], np.float32)[:, None]
        values = values.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    return values


def outputs(packed: Packed, start: int, stop: int) -> Codes | Packed:
    """Some of the outputs of a packed matrix."""
    if packed.grid is not None:
        return unpack(packed)[start:stop]
    fields = {name: a[start:stop] for name, a in packed.fields.items()}
    return replace(packed, shape=(stop - start, packed.shape[1]), fields=fields)
