"""Layers as AutoGPTQ and GPTQModel store them (Frantar et al. 2023, arXiv 2210.17323).

    qweight   int32 (n_in * bits / 32, n_out)       codes of an output, packed along its inputs
    qzeros    int32 (n_groups, n_out * bits / 32)   zeros of a group, packed along the outputs
    scales    float (n_groups, n_out)
    g_idx     int32 (n_in,)                         group of each input

The first version of the format stores each zero less 1, modulo 2**bits; the second as it is. With activation
order and groups, g_idx is in no order: see `module.in_order`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pronghorn.errors import UnsupportedError
from pronghorn.model.checkpoint import Entry
from pronghorn.model.names import shown
from pronghorn.model.quantized.module import (
    FLOATS,
    Module,
    Scheme,
    checked_groups,
    group_size,
    in_order,
    matrix,
    n_groups,
    setting,
    sorts,
    stays_small,
)
from pronghorn.model.quantized.stored import Tensor
from pronghorn.model.quantized.words import stream

BITS = (2, 3, 4, 8)


def scheme(config: Mapping[str, Any], where: str) -> Scheme:
    """Raises CheckpointError or UnsupportedError for settings that make no sense or are not read."""
    bits = setting(config, "bits", where)
    if bits not in BITS:
        raise UnsupportedError(f"{where}: GPTQ in {bits} bits is not supported; Pronghorn reads {BITS}")
    group = group_size(config, "group_size", where, -1)
    version = config.get("checkpoint_format") or "gptq"
    if version not in ("gptq", "gptq_v2") or config.get("is_marlin_format"):
        raise UnsupportedError(
            f"{where}: GPTQ weights in the layout of one kernel ({shown(version)}) are not supported; "
            "use the checkpoint in format gptq or gptq_v2"
        )
    plus = 1 if version == "gptq" else 0
    symmetric, reordered = config.get("sym", True) is True, config.get("desc_act") is True

    def read(module: Module) -> Entry:
        n_words, n_out = module.shape("qweight", ("I32",))
        if n_words * 32 % bits or n_out * bits % 32:
            raise module.wrong(f"qweight is {(n_words, n_out)}, which makes no whole codes of {bits} bits")
        n_in = n_words * 32 // bits
        groups = n_groups(n_in, group)
        module.require("scales", FLOATS, (groups, n_out))
        if "qzeros" in module.parts or not symmetric:
            module.require("qzeros", ("I32",), (groups, n_out * bits // 32))
        if "g_idx" in module.parts:
            module.require("g_idx", ("I32", "I64"), (n_in,))
        small = stays_small(module, "scales", group, zeros=not symmetric)
        if reordered:
            g_idx = checked_groups(module, "g_idx", n_in, group)
            small &= g_idx is None or sorts(g_idx, group)
        label = f"gptq int{bits}"
        return module.entry((n_out, n_in), label, small, lambda: _tensor(module, n_in, bits, group, plus))

    return Scheme(("qweight",), ("qweight", "qzeros", "scales", "g_idx"), (), read)


def _tensor(module: Module, n_in: int, bits: int, group: int, plus: int) -> Tensor:
    g_idx = checked_groups(module, "g_idx", n_in, group)
    code = stream(module.read("qweight").T, bits)
    scale = module.read("scales").T
    zero = None
    if "qzeros" in module.parts:
        mask = np.uint8((1 << bits) - 1)
        zero = (stream(module.read("qzeros"), bits) + np.uint8(plus) & mask).T
    if g_idx is not None:
        return in_order(module.name, code, scale, zero, bits, group, g_idx)
    return matrix(module.name, code, scale, zero, bits, group)
