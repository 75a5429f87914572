"""What a checkpoint's tensor may be besides an array, and what all readers of small integers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import CheckpointError
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
    if isinstance(tensor, Codes):
        return tensor.dense()
    if isinstance(tensor, Turned):
        turned: Array = dense(tensor.T).T
        return turned
    if isinstance(tensor, Packed):
        fields = tensor.fields
        if tensor.kind != "float8":
            raise CheckpointError(f"a checkpoint holds no weights of kind {tensor.kind!r}")
        values = np.asarray(fields["w"]).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        out: Array = values * np.asarray(fields["scale"], np.float32)[:, None]
        return out
    return tensor
