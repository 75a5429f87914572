"""What a checkpoint's tensor may be besides an array, and what all readers of small integers share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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


def side_by_side(do: Callable[[int], object], items: Sequence[int]) -> None:
    """`do` of each item, on a thread for each processor, 8 at most: NumPy lets go of the interpreter in what
    counts."""
    if len(items) < 4:
        for i in items:
            do(i)
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(do, items):
            pass


def dense(tensor: Tensor) -> Array:
    """The values: float arrays as they are, everything else in float32."""
    if isinstance(tensor, Turned):
        turned: Array = values.dense(tensor.T).T
        return turned
    return values.dense(tensor)
