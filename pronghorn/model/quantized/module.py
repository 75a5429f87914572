"""A quantized layer of a Hugging Face checkpoint: several arrays that stand for one matrix.

`Module` hands them out checked, `matrix` makes codes of what they hold. What codes cannot hold (groups of
inputs that differ in size, scales for blocks of outputs, groups with scales of 32 bits) comes as its float32
values instead: exact, but no longer small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import CheckpointError, UnsupportedError
from pronghorn.model.checkpoint import ArrayEntry, Entry, TensorInfo
from pronghorn.model.names import MAX_DIM, shown
from pronghorn.model.quantized.stored import Array, Tensor, require_finite
from pronghorn.ops.codes import NONE, Codes, Grid

FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class Module:
    """The arrays of one layer by the last part of their names, and the tensor that they stand for."""

    name: str
    parts: Mapping[str, ArrayEntry]

    def wrong(self, what: str) -> CheckpointError:
        layer = self.name.removesuffix(".weight")
        return CheckpointError(
            f"{layer}: {what}; the checkpoint is damaged, or its config.json belongs to other weights"
        )

    def shape(self, part: str, dtypes: tuple[str, ...], n_dims: int = 2) -> tuple[int, ...]:
        """Raises CheckpointError unless the part is there, of one of the dtypes, and not empty."""
        if part not in self.parts:
            raise self.wrong(f"{part} is missing")
        info = self.parts[part].info
        if info.dtype not in dtypes:
            raise self.wrong(f"{part} is {info.dtype}, expected {' or '.join(dtypes)}")
        if len(info.shape) != n_dims or 0 in info.shape:
            raise self.wrong(f"{part} is {info.shape}, expected {n_dims} dimensions")
        return info.shape

    def require(self, part: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
        """Raises CheckpointError unless the part is there, of one of the dtypes and of the shape."""
        have = self.shape(part, dtypes, len(shape))
        if have != shape:
            raise self.wrong(f"{part} is {have}, expected {shape}")

    def read(self, part: str) -> Array:
        return self.parts[part].read()

    def entry(self, shape: tuple[int, int], label: str, small: bool, read: Callable[[], Tensor]) -> Entry:
        """`label` is the dtype that people see; bytes are those of all parts."""
        nbytes = sum(part.info.nbytes for part in self.parts.values())
        return Entry(TensorInfo(self.name, shape, label, nbytes, small), read)


@dataclass(frozen=True)
class Scheme:
    """How a library lays out its layers.

    keys: a layer is quantized when it has an array of such a name; parts: names that then belong together;
    unused: names of what only quantized activations or KV need; read: makes the tensor.
    """

    keys: tuple[str, ...]
    parts: tuple[str, ...]
    unused: tuple[str, ...]
    read: Callable[[Module], Entry]


def setting(config: Mapping[str, Any], key: str, where: str, *default: Any) -> int:
    """A whole number out of a quantization_config. Raises CheckpointError for anything else."""
    value = config.get(key, *default)
    if type(value) is not int or not -1 <= value <= MAX_DIM:
        raise CheckpointError(
            f"{where}: quantization_config has {key} {shown(value)}, expected a whole number"
        )
    return value


def group_size(config: Mapping[str, Any], key: str, where: str, *default: Any) -> int:
    """Inputs that share a scale, 0 for all of them."""
    size = setting(config, key, where, *default)
    if size == -1:
        return 0
    if size == 0 or size % 16:
        raise UnsupportedError(
            f"{where}: quantization_config has {key} {size}; Pronghorn reads groups of a multiple of 16 "
            "inputs, or -1 for whole rows"
        )
    return size


def n_groups(n_in: int, group: int) -> int:
    return -(-n_in // group) if group else 1


def matrix(
    name: str, code: NDArray[np.uint8], scale: Array, zero: NDArray[np.uint8] | None, bits: int, group: int
) -> Tensor:
    """value = scale * (code - zero), without loss.

    code: (n_out, n_in), contiguous; scale: floats (n_out, n_groups); zero: (n_out, n_groups), None where it
    is the middle code; group: as `group_size` gives it. Groups that grids do not have are cut into such
    with the same scale. Scales of groups that do not fit into 16 bits make float32 values.
    """
    n_in = code.shape[1]
    middle = 1 << (bits - 1)
    if zero is not None and (zero == middle).all():
        zero = None
    if group >= n_in:
        group = 0
    if group == 0 and zero is None:
        scale = np.ascontiguousarray(scale, np.float32)
        require_finite(name, scale)
        return Codes(Grid(bits, 0, scale="float32"), code, scale, NONE, NONE, NONE)
    fine = next(f for f in (128, 64, 32, 16) if group % f == 0)
    if fine != group:
        of = np.arange(-(-n_in // fine)) * fine // group if group else np.zeros(-(-n_in // fine), np.intp)
        scale = scale[:, of]
        zero = None if zero is None else zero[:, of]
    narrow = _narrow(scale)
    if narrow is None:
        return scattered(name, code, scale, zero, bits, np.arange(n_in) // fine)
    scale = np.ascontiguousarray(narrow)
    require_finite(name, scale)
    kind = scale.dtype.name
    if zero is None:
        return Codes(Grid(bits, fine, scale=kind), code, scale, NONE, NONE, NONE)
    grid = Grid(bits, fine, False, (), kind, "zero")
    return Codes(grid, code, scale, np.ascontiguousarray(zero), NONE, NONE)


def stays_small(module: Module, scales: str, group: int, zeros: bool) -> bool:
    """Whether `matrix` will make codes, as far as can be said before anything is read."""
    return module.parts[scales].info.dtype != "F32" or (group == 0 and not zeros)


def _narrow(scale: Array) -> Array | None:
    """Scales in 16 bits, None where float32 ones do not fit into those."""
    if scale.dtype != np.float32:
        return scale
    for kind in (np.float16, ml_dtypes.bfloat16):
        with np.errstate(over="ignore", invalid="ignore"):
            narrow: Array = scale.astype(kind)
        if np.array_equal(narrow.astype(np.float32), scale, equal_nan=True):
            return narrow
    return None


def in_order(
    name: str, code: NDArray[np.uint8], scale: Array, zero: NDArray[np.uint8] | None, bits: int, group: int,
    g_idx: Array,
) -> Tensor:  # fmt: skip
    """The same where input i belongs to group g_idx[i]: codes whose columns are sorted by group, with the
    order of their inputs, or float32 values where groups differ in size."""
    if not sorts(g_idx, group):
        return scattered(name, code, scale, zero, bits, g_idx)
    order = np.argsort(g_idx, kind="stable").astype(np.int32)
    made = matrix(name, np.ascontiguousarray(code[:, order]), scale, zero, bits, group)
    if isinstance(made, Codes):
        return replace(made, order=order)
    return scattered(name, code, scale, zero, bits, g_idx)


def sorts(g_idx: Array, group: int) -> bool:
    """Whether groups are whole, in whatever order their inputs come."""
    return np.array_equal(np.sort(g_idx), np.arange(len(g_idx)) // group)


def scattered(
    name: str, code: NDArray[np.uint8], scale: Array, zero: NDArray[np.uint8] | None, bits: int, g_idx: Array
) -> NDArray[np.float32]:
    """The same in float32, where input i belongs to group g_idx[i]."""
    require_finite(name, scale)
    out = code.astype(np.float32)
    out -= np.float32(1 << (bits - 1)) if zero is None else zero[:, g_idx]
    out *= scale.astype(np.float32)[:, g_idx]
    return out


def checked_groups(module: Module, part: str, n_in: int, group: int) -> Array | None:
    """The group of each input, None where they follow each other. Raises CheckpointError for groups that
    do not exist."""
    if part not in module.parts:
        return None
    g_idx = module.read(part)
    low, high, n = int(g_idx.min()), int(g_idx.max()), n_groups(n_in, group)
    if low < 0 or high >= n:
        raise module.wrong(f"{part} names groups from {low} to {high} of {n}")
    return None if np.array_equal(g_idx, np.arange(n_in) // (group or n_in)) else g_idx
