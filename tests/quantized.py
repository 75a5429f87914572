"""Layers as other libraries store them quantized, packed here bit by bit from the formats' definitions.

Each maker draws integers and scales at random and returns (arrays by the last part of their names, values):
what a checkpoint would hold, and the float32 matrix that it stands for. `checkpoint` writes a small llama
with every linear layer made so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import ml_dtypes
import numpy as np
import torch
from safetensors.torch import load_file, save_file

Layer = tuple[dict[str, np.ndarray], np.ndarray]
WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "vocab_size": 160}


def words(rows: list[list[int]], bits: int) -> np.ndarray:
    """Each row of codes as one long binary number, the first code lowest, cut into 32 bits."""
    out = []
    for row in rows:
        number = sum(code << (i * bits) for i, code in enumerate(row))
        out.append([number >> (32 * w) & 0xFFFFFFFF for w in range(len(row) * bits // 32)])
    return np.array(out, np.uint32).view(np.int32)


def some_scales(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, bits: int) -> np.ndarray:
    return (rng.uniform(0.005, 0.02, shape) * 2.0 ** (3 - bits)).astype(dtype)


def gptq(
    rng: np.random.Generator, n_out: int, n_in: int, bits: int = 4, group: int = 128, version: str = "gptq",
    sym: bool = False, order: bool = False, dtype: Any = np.float16,
) -> Layer:  # fmt: skip
    size = n_in if group == -1 else group
    n_groups = -(-n_in // size)
    code = rng.integers(0, 1 << bits, (n_in, n_out))
    least = 1 if version == "gptq" else 0
    zero = (
        np.full((n_groups, n_out), 1 << (bits - 1))
        if sym
        else rng.integers(least, 1 << bits, (n_groups, n_out))
    )
    scale = some_scales(rng, (n_groups, n_out), dtype, bits)
    g_idx = np.arange(n_in) // size
    if order:
        g_idx = rng.permutation(g_idx)
    values = np.empty((n_out, n_in), np.float32)
    for i in range(n_in):
        g = g_idx[i]
        values[:, i] = scale[g].astype(np.float64) * (code[i] - zero[g])
    stored = zero - 1 if version == "gptq" else zero
    parts = {
        "qweight": words(code.T.tolist(), bits).T,
        "qzeros": words(stored.tolist(), bits),
        "scales": scale,
        "g_idx": g_idx.astype(np.int32),
    }
    return parts, values


def awq(rng: np.random.Generator, n_out: int, n_in: int, group: int = 128) -> Layer:
    size = n_in if group == -1 else group
    n_groups = n_in // size
    code, zero = rng.integers(0, 16, (n_in, n_out)), rng.integers(0, 16, (n_groups, n_out))
    scale = some_scales(rng, (n_groups, n_out), np.float16, 4)

    def pack(codes: np.ndarray) -> np.ndarray:
        out = np.zeros((codes.shape[0], n_out // 8), np.uint32)
        for column in range(n_out // 8):
            for lane, which in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                out[:, column] |= codes[:, column * 8 + which].astype(np.uint32) << (4 * lane)
        return out.view(np.int32)

    of = np.arange(n_in) // size
    values = (scale.astype(np.float64)[of] * (code - zero[of])).T.astype(np.float32)
    return {"qweight": pack(code), "qzeros": pack(zero), "scales": scale}, values


def packed(
    rng: np.random.Generator, n_out: int, n_in: int, bits: int = 4, group: int = 128, sym: bool = True,
    packed_zeros: bool = True, order: bool = False, dtype: Any = ml_dtypes.bfloat16,
) -> Layer:  # fmt: skip
    """compressed-tensors' pack-quantized; group -1: one scale for each output."""
    size = n_in if group == -1 else group
    n_groups = -(-n_in // size)
    middle, per = 1 << (bits - 1), 32 // bits
    code = rng.integers(-middle, middle, (n_out, n_in))
    zero = np.zeros((n_out, n_groups), int) if sym else rng.integers(-middle, middle, (n_out, n_groups))
    scale = some_scales(rng, (n_out, n_groups), dtype, bits)
    of = np.arange(n_in) // size
    if order:
        of = rng.permutation(of)
    values = (scale.astype(np.float64)[:, of] * (code - zero[:, of])).astype(np.float32)

    def pack(rows: np.ndarray) -> np.ndarray:
        """Along the last axis."""
        out = np.zeros((rows.shape[0], -(-rows.shape[1] // per)), np.uint32)
        for i in range(rows.shape[1]):
            out[:, i // per] |= (rows[:, i] + middle).astype(np.uint32) << (bits * (i % per))
        return out.view(np.int32)

    parts = {
        "weight_packed": pack(code),
        "weight_scale": scale,
        "weight_shape": np.array([n_out, n_in], np.int64),
    }
    if not sym:
        parts["weight_zero_point"] = pack(zero.T).T if packed_zeros else zero.astype(np.int8)
    if order:
        parts["weight_g_idx"] = of.astype(np.int32)
    return parts, values


def integers(
    rng: np.random.Generator, n_out: int, n_in: int, group: int = -1, sym: bool = True, bits: int = 8,
    whole: bool = False,
) -> Layer:  # fmt: skip
    """compressed-tensors' int-quantized; whole: one scale for the tensor."""
    size = n_in if group == -1 else group
    middle = 1 << (bits - 1)
    shape = (1,) if whole else (n_out, n_in // size)
    code = rng.integers(-middle, middle, (n_out, n_in))
    scale = some_scales(rng, shape, np.float32 if group == -1 else ml_dtypes.bfloat16, bits)
    zero = np.zeros(shape, int) if sym else rng.integers(-middle, middle, shape)
    of = np.arange(n_in) // size
    s, z = (np.broadcast_to(a.reshape(-1, n_in // size), (n_out, n_in // size))[:, of] for a in (scale, zero))
    values = (s.astype(np.float64) * (code - z)).astype(np.float32)
    parts = {"weight": code.astype(np.int8), "weight_scale": scale}
    if not sym:
        parts["weight_zero_point"] = zero.astype(np.int8)
    return parts, values


def floats(
    rng: np.random.Generator, n_out: int, n_in: int, shape: str = "row", name: str = "weight_scale"
) -> Layer:
    """fp8; shape: row, tensor, scalar or block (of 128 x 128)."""
    weight = (rng.standard_normal((n_out, n_in)) * 60).astype(ml_dtypes.float8_e4m3fn)
    shapes = {"row": (n_out, 1), "tensor": (1,), "scalar": (), "block": (-(-n_out // 128), -(-n_in // 128))}
    scale = np.asarray(rng.uniform(1e-4, 1e-3, shapes[shape]), np.float32)
    whole = scale
    if shape == "block":
        whole = scale.repeat(128, 0)[:n_out].repeat(128, 1)[:, :n_in]
    return {"weight": weight, name: scale}, weight.astype(np.float32) * whole


def gptq_config(bits: int = 4, group: int = 128, version: str = "gptq", **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": version, **more}


def awq_config(group: int = 128, **more: Any) -> dict[str, Any]:
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        "zero_point": True,
        "version": "gemm",
        **more,
    }


def compressed_config(layout: str, **weights: Any) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel", **weights}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
        "ignore": ["lm_head"],
    }


# Every scheme: what makes its layers, and what config.json says.
SCHEMES: dict[str, tuple[Callable[..., Layer], dict[str, Any]]] = {
    "gptq": (gptq, gptq_config()),
    "gptq-2": (lambda *a: gptq(*a, bits=2, group=64, sym=True), gptq_config(2, 64)),
    "gptq-3": (lambda *a: gptq(*a, bits=3, group=32), gptq_config(3, 32, sym=False)),
    "gptq-8": (lambda *a: gptq(*a, bits=8, group=-1, sym=True), gptq_config(8, -1)),
    "gptq-8-v2": (
        lambda *a: gptq(*a, bits=8, group=-1, version="gptq_v2"),
        gptq_config(8, -1, "gptq_v2", sym=False),
    ),
    "gptq-order": (lambda *a: gptq(*a, group=32, order=True), gptq_config(4, 32, desc_act=True)),
    "awq": (awq, awq_config()),
    "awq-rows": (lambda *a: awq(*a, group=-1), awq_config(-1)),
    "packed-4": (
        lambda *a: packed(*a, sym=False),
        compressed_config("pack-quantized", strategy="group", group_size=128, symmetric=False),
    ),
    "packed-8": (
        lambda *a: packed(*a, bits=8, group=-1),
        compressed_config("pack-quantized", num_bits=8),
    ),
    "int8": (integers, compressed_config("int-quantized", num_bits=8)),
    "int8-groups": (
        lambda *a: integers(*a, group=32, sym=False),
        compressed_config("int-quantized", num_bits=8, strategy="group", group_size=32, symmetric=False),
    ),
    "float8": (floats, compressed_config("float-quantized", num_bits=8, type="float")),
    "fp8": (lambda *a: floats(*a, "scalar"), {"quant_method": "fp8", "activation_scheme": "static"}),
    "fp8-blocks": (
        lambda *a: floats(*a, "block", "weight_scale_inv"),
        {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"},
    ),
}


def tensors(parts: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """For safetensors' writer, which has torch's types only."""
    out = {}
    for name, a in parts.items():
        a = np.ascontiguousarray(a)
        for theirs, plain, kind in (
            (ml_dtypes.bfloat16, np.int16, torch.bfloat16),
            (ml_dtypes.float8_e4m3fn, np.uint8, torch.float8_e4m3fn),
        ):
            if a.dtype == theirs:
                out[name] = torch.from_numpy(a.view(plain)).view(kind)
        if name not in out:
            out[name] = torch.from_numpy(a.copy())
    return out


def checkpoint(
    scheme: str, folder: Path, architecture: str = "llama", **changes: Any
) -> dict[str, np.ndarray]:
    """A small model in `folder` whose layers are of the scheme; the values of its quantized tensors."""
    make, config = SCHEMES[scheme]
    checkpoints.write(architecture, folder, **{**WIDE, **changes})
    held = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(7)
    values: dict[str, np.ndarray] = {}
    for name in [n for n in held if n.endswith("proj.weight")]:
        n_out, n_in = held.pop(name).shape
        parts, values[name] = make(rng, n_out, n_in)
        layer = name.removesuffix("weight")
        held.update(tensors({layer + part: a for part, a in parts.items()}))
    save_file(held, folder / "model.safetensors")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))
    return values
