"""Weights in 8-bit floating point, E4M3 (Micikevicius et al. 2022, arXiv 2209.05433): `quant_method` "fp8"
and "fbgemm_fp8", and the layers of compressed-tensors that hold them.

    weight            float8_e4m3fn (n_out, n_in)
    weight_scale      one for the tensor or one for each output; value = weight * scale
    weight_scale_inv  the same despite its name, or one for each block of outputs and inputs

Scales for blocks do not fit a format with a scale for each output: those weights come as float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from pronghorn.errors import CheckpointError, UnsupportedError
from pronghorn.model.checkpoint import Entry
from pronghorn.model.names import MAX_DIM, shown
from pronghorn.model.quantized.module import FLOATS, Module, Scheme
from pronghorn.model.quantized.stored import Array, NonFiniteError, Tensor, require_finite
from pronghorn.types import Packed

E4M3 = "F8_E4M3"
UNUSED = ("input_scale", "input_scale_ub", "activation_scale", "k_scale", "v_scale")


def scheme(config: Mapping[str, Any], where: str) -> Scheme:
    """Raises CheckpointError or UnsupportedError for settings that make no sense or are not read."""
    if (kind := config.get("fmt", "e4m3")) != "e4m3":
        raise UnsupportedError(
            f"{where}: fp8 weights in {shown(kind)} are not supported; Pronghorn reads e4m3"
        )
    block = config.get("weight_block_size")
    if block is not None and not (
        isinstance(block, list)
        and len(block) == 2
        and all(type(n) is int and 1 <= n <= MAX_DIM for n in block)
    ):
        raise CheckpointError(f"{where}: weight_block_size must be two sizes, not {shown(block)}")

    def read(module: Module) -> Entry:
        part = "weight_scale_inv" if "weight_scale_inv" in module.parts else "weight_scale"
        return float8(module, part, tuple(block or ()))

    return Scheme(
        ("weight_scale_inv", "weight_scale"), ("weight", "weight_scale_inv", "weight_scale"), UNUSED, read
    )


def float8(module: Module, part: str, block: tuple[int, ...]) -> Entry:
    """The tensor, whose scales lie in `part`: for blocks of a shape, or for a row or all where () is."""
    n_out, n_in = module.shape("weight", (E4M3,))
    info = module.parts[part].info
    if info.dtype not in FLOATS:
        raise module.wrong(f"{part} is {info.dtype}, expected {' or '.join(FLOATS)}")
    allowed: tuple[tuple[int, ...], ...] = ((), (1,), (1, 1), (n_out,), (n_out, 1))
    if block:
        allowed = ((-(-n_out // block[0]), -(-n_in // block[1])),)
    if info.shape not in allowed:
        raise module.wrong(f"{part} is {info.shape} for a weight of {(n_out, n_in)}, expected {allowed[-1]}")
    return module.entry((n_out, n_in), E4M3, not block, lambda: _tensor(module, part, block))


def _tensor(module: Module, part: str, block: tuple[int, ...]) -> Tensor:
    weight, scale = module.read("weight").view(np.uint8), module.read(part).astype(np.float32)
    require_finite(module.name, scale)
    if any(((some & 0x7F) == 0x7F).any() for some in np.array_split(weight, -(-weight.size // (1 << 22)))):
        raise NonFiniteError(
            f"tensor {module.name!r} holds NaN: the checkpoint is damaged; download or convert it again"
        )
    if not block:
        row = np.ascontiguousarray(np.broadcast_to(scale.reshape(-1), (len(weight),)))
        return Packed("float8", weight.shape, {"w": weight, "scale": row})
    out: Array = weight.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    for i, row in enumerate(scale):
        rows = out[i * block[0] : (i + 1) * block[0]]
        rows *= np.repeat(row, block[1])[: weight.shape[1]]
    return out
