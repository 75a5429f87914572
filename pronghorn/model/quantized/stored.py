"""What a checkpoint's tensor may be besides an array, and what all readers of small integers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import CheckpointError
from pronghorn.ops import values
from pronghorn.ops.codes import Codes
from pronghorn.types import Packed

Array = NDArray[Any]


@dataclass(frozen=True)
class Turned:
    """A matrix (n_in, n_out) as GPT-2 names its weights, held the way that products read it."""

    T: Codes | Packed

    @property
    def shape(self) -> tuple[int, int]:
        n_out, n_in = self.T.shape
        return n_in, n_out


Tensor: TypeAlias = Array | Codes | Turned | Packed


def floats(tensor: Tensor) -> Array:
    """The values in float32, whatever holds them."""
    return np.asarray(dense(tensor), np.float32)


class NonFiniteError(CheckpointError):
    """A scale or an offset is NaN or infinite."""


def require_finite(name: str, *factors: Array) -> None:
    """Raise NonFiniteError, naming the tensor, unless all factors of its codes are numbers."""
    n = sum(a.size - int(np.isfinite(a).sum()) for a in factors if a.dtype.kind not in "iu")
    if n:
        raise NonFiniteError(
            f"tensor {name!r} holds NaN or infinite scales ({n}): the checkpoint is damaged; "
            "download or convert it again"
        )


def dense(tensor: Tensor) -> Array:
    """The values: float arrays as they are, everything else in float32."""
    if isinstance(tensor, Turned):
        turned: Array = values.dense(tensor.T).T
        return turned
    return values.dense(tensor)
