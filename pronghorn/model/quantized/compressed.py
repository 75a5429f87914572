"""Layers in the format of compressed-tensors (llm-compressor).

    pack-quantized    weight_packed int32 (n_out, n_words), 32 // bits codes in each; weight_shape int64 (2,)
    int-quantized     weight int8 (n_out, n_in)
    float-quantized   weight float8_e4m3fn (n_out, n_in)

    weight_scale        (n_out, n_groups), (n_out, 1) or (1,)
    weight_zero_point   int8 like weight_scale, or packed like the codes along the outputs; absent: 0
    weight_g_idx        int32 (n_in,), group of each input

Integers are signed; packed ones have 2**(bits - 1) added. Bits and groups are those of the config's entry
that the shapes of a layer fit, so that no pattern out of a file is ever matched. What the config says about
activations is left aside: they are computed more exactly than it asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import CheckpointError, UnsupportedError
from pronghorn.model.checkpoint import Entry
from pronghorn.model.names import shown
from pronghorn.model.quantized.float8 import float8
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
from pronghorn.model.quantized.stored import Array, Tensor
from pronghorn.model.quantized.words import lanes

FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mixed-precision",
    "dense",
)
PARTS = ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
UNUSED = (
    "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point", "k_scale",
    "v_scale", "q_scale",
)  # fmt: skip
MAX_ENTRIES = 64


@dataclass(frozen=True)
class Weights:
    """What one entry of the config says: bits, inputs that share a scale (0: all, of one output or of
    all), blocks of fp8."""

    bits: int
    floating: bool
    group: int
    symmetric: bool
    block: tuple[int, ...] = ()


def scheme(config: Mapping[str, Any], where: str) -> Scheme:
    """Raises CheckpointError or UnsupportedError for settings that make no sense or are not read."""
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not 1 <= len(groups) <= MAX_ENTRIES:
        raise CheckpointError(f"{where}: quantization_config has no config_groups that could be read")
    _require_format(config.get("format", "dense"), where)
    sparse = config.get("sparsity_config")
    if isinstance(sparse, dict) and sparse.get("format", "dense") != "dense":
        raise UnsupportedError(f"{where}: sparse weights ({shown(sparse.get('format'))}) are not supported")
    entries = []
    for group in groups.values():
        if not isinstance(group, dict):
            raise CheckpointError(f"{where}: config_groups holds {shown(group)}")
        _require_format(group.get("format") or "dense", where)
        if group.get("weights") is not None:
            entries.append(_weights(group["weights"], where))

    return Scheme(("weight_scale",), PARTS, UNUSED, partial(_read, entries=tuple(dict.fromkeys(entries))))


def _require_format(name: object, where: str) -> None:
    if name not in FORMATS:
        raise UnsupportedError(
            f"{where}: compressed-tensors format {shown(name)} is not supported; Pronghorn reads "
            f"{', '.join(FORMATS[:3])}"
        )


def _weights(given: object, where: str) -> Weights:
    if not isinstance(given, dict):
        raise CheckpointError(f"{where}: config_groups holds weights {shown(given)}")
    bits, kind = setting(given, "num_bits", where, 8), given.get("type", "int")
    strategy = given.get("strategy") or ("group" if given.get("group_size") else "tensor")
    floating = kind == "float"
    known = ("tensor", "channel", "block") if floating else ("tensor", "channel", "group")
    if kind not in ("int", "float") or bits not in ((8,) if floating else (2, 3, 4, 8)):
        raise UnsupportedError(f"{where}: weights of {bits} bits and type {shown(kind)} are not supported")
    if strategy not in known:
        raise UnsupportedError(f"{where}: {kind} weights with strategy {shown(strategy)} are not supported")
    block = given.get("block_structure") if strategy == "block" else None
    if strategy == "block" and not (
        isinstance(block, list) and len(block) == 2 and all(type(n) is int and 1 <= n < 2**31 for n in block)
    ):
        raise CheckpointError(f"{where}: block_structure must be two sizes, not {shown(block)}")
    group = group_size(given, "group_size", where) if strategy == "group" else 0
    return Weights(bits, floating, group, given.get("symmetric", True) is True, tuple(block or ()))


def _read(module: Module, entries: tuple[Weights, ...]) -> Entry:
    floating = "weight" in module.parts and module.parts["weight"].info.dtype.startswith("F8")
    fits: dict[object, Entry] = {}
    wrong: CheckpointError | None = None
    for weights in entries:
        if weights.floating != floating:
            continue
        try:
            entry = _entry(module, weights)
            key = (weights.bits, n_groups(entry.info.shape[1], weights.group), weights.block)
            fits.setdefault(key, entry)
        except CheckpointError as error:
            wrong = error
    if not fits:
        raise wrong or module.wrong("no entry of config_groups says how it is quantized")
    if len(fits) > 1:
        raise UnsupportedError(
            f"{module.name}: {len(fits)} entries of config_groups fit its shapes; its bits are uncertain"
        )
    return next(iter(fits.values()))


def _entry(module: Module, weights: Weights) -> Entry:
    if weights.floating:
        return float8(module, "weight_scale", weights.block)
    bits = weights.bits
    if "weight_packed" in module.parts and "weight" in module.parts:
        raise module.wrong("weight is stored twice, packed and not")
    if "weight_packed" in module.parts:
        n_out, n_words = module.shape("weight_packed", ("I32",))
        n_in = _n_in(module, n_out, n_words, 32 // bits)
    else:
        n_out, n_in = module.shape("weight", ("I8",))
    groups = n_groups(n_in, weights.group)
    shape = module.parts["weight_scale"].info.shape
    allowed = [(n_out, groups)] if weights.group else [(n_out, 1), (n_out,), (1, 1), (1,), ()]
    if shape not in allowed:
        raise module.wrong(f"weight_scale is {shape}, expected {allowed[0]}")
    module.require("weight_scale", FLOATS, shape)
    if "weight_zero_point" in module.parts:
        packed = module.parts["weight_zero_point"].info.dtype == "I32"
        wanted = (-(-n_out // (32 // bits)), groups) if packed else shape
        module.require("weight_zero_point", ("I32",) if packed else ("I8",), wanted)
    elif not weights.symmetric:
        raise module.wrong("weight_zero_point is missing")
    if "weight_g_idx" in module.parts:
        module.require("weight_g_idx", ("I32", "I64"), (n_in,))
    group = weights.group
    small = stays_small(module, "weight_scale", group, zeros="weight_zero_point" in module.parts)
    if "weight_g_idx" in module.parts:
        g_idx = checked_groups(module, "weight_g_idx", n_in, group)
        small &= g_idx is None or sorts(g_idx, group)
    label = f"int{bits}"
    return module.entry((n_out, n_in), label, small, lambda: _tensor(module, n_out, n_in, bits, group))


def _n_in(module: Module, n_out: int, n_words: int, per: int) -> int:
    """Inputs, from the shape that is stored as an array."""
    module.require("weight_shape", ("I64", "I32"), (2,))
    rows, n_in = (int(n) for n in module.read("weight_shape"))
    if rows != n_out or n_in < 1 or -(-n_in // per) != n_words:
        raise module.wrong(f"weight_shape says {(rows, n_in)}, but weight_packed is {(n_out, n_words)}")
    return n_in


def _tensor(module: Module, n_out: int, n_in: int, bits: int, group: int) -> Tensor:
    g_idx = checked_groups(module, "weight_g_idx", n_in, group)
    groups = n_groups(n_in, group)
    if "weight_packed" in module.parts:
        code = lanes(module.read("weight_packed"), bits, n_in)
    else:
        code = _unsigned(module, "weight", bits)
    scale = np.broadcast_to(module.read("weight_scale").reshape(-1, groups), (n_out, groups))
    zero = _zero(module, n_out, groups, bits) if "weight_zero_point" in module.parts else None
    if g_idx is not None:
        return in_order(module.name, code, scale, zero, bits, group, g_idx)
    return matrix(module.name, code, scale, zero, bits, group)


def _zero(module: Module, n_out: int, groups: int, bits: int) -> NDArray[np.uint8]:
    stored = module.read("weight_zero_point")
    if stored.dtype.itemsize == 4:
        packed: NDArray[np.uint8] = lanes(stored.T, bits, n_out).T
        return packed
    return np.broadcast_to(_unsigned(module, "weight_zero_point", bits).reshape(-1, groups), (n_out, groups))


def _unsigned(module: Module, part: str, bits: int) -> NDArray[np.uint8]:
    """Signed integers as codes. Raises CheckpointError where one does not fit into the bits."""
    stored: Array = module.read(part)
    code: NDArray[np.uint8] = stored.view(np.uint8) + np.uint8(1 << (bits - 1))  # modulo 256
    if bits < 8 and (code >> np.uint8(bits)).any():
        raise module.wrong(f"{part} holds integers of more than {bits} bits")
    return code
