"""Layers as AutoAWQ stores them (Lin et al. 2023, arXiv 2306.00978), in its packing "gemm".

qweight   int32 (n_in, n_out / 8)       8 outputs in a word, see ORDER
qzeros    int32 (n_groups, n_out / 8)   the same of zeros
scales    float (n_groups, n_out)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import UnsupportedError
from pronghorn.model.checkpoint import Entry
from pronghorn.model.names import shown
from pronghorn.model.quantized.module import (
    FLOATS,
    Module,
    Scheme,
    group_size,
    matrix,
    n_groups,
    setting,
    stays_small,
)
from pronghorn.model.quantized.stored import Array, Tensor
from pronghorn.model.quantized.words import stream

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output, of a word's 8, that each 4 bits from the lowest up hold
_PLACE = np.argsort(ORDER)


def scheme(config: Mapping[str, Any], where: str) -> Scheme:
    """Raises CheckpointError or UnsupportedError for settings that make no sense or are not read."""
    bits = setting(config, "bits" if "bits" in config else "w_bit", where)
    if bits != 4:
        raise UnsupportedError(f"{where}: AWQ in {bits} bits is not supported; Pronghorn reads 4")
    group = group_size(config, "group_size" if "group_size" in config else "q_group_size", where)
    version = config.get("version") or "gemm"
    if not isinstance(version, str) or version.lower() != "gemm":
        raise UnsupportedError(
            f"{where}: AWQ weights in packing {shown(version)} are not supported; Pronghorn reads gemm"
        )
    if config.get("zero_point", True) is not True:
        raise UnsupportedError(f"{where}: AWQ weights without zero points are not supported")

    def read(module: Module) -> Entry:
        n_in, n_words = module.shape("qweight", ("I32",))
        groups = n_groups(n_in, group)
        module.require("qzeros", ("I32",), (groups, n_words))
        module.require("scales", FLOATS, (groups, n_words * 8))
        small = stays_small(module, "scales", group, zeros=True)
        return module.entry((n_words * 8, n_in), "awq int4", small, lambda: _tensor(module, group))

    return Scheme(("qweight",), ("qweight", "qzeros", "scales"), (), read)


def _tensor(module: Module, group: int) -> Tensor:
    code, zero = _unpack(module.read("qweight")), _unpack(module.read("qzeros"))
    return matrix(module.name, code, module.read("scales").T, zero, 4, group)


def _unpack(words: Array) -> NDArray[np.uint8]:
    """int32 (n, n_out / 8) -> uint8 (n_out, n)."""
    codes = stream(words, 4).reshape(*words.shape, 8)[..., _PLACE]
    return np.ascontiguousarray(codes.reshape(len(words), -1).T)
