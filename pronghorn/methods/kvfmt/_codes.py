"""Keys and values to codes as `kv.layout.coded_fields` lays them out, and back; `_beside.py` has what stands
beside codes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pronghorn.methods.kvfmt import _beside
from pronghorn.methods.kvfmt._beside import bfloat as bfloat
from pronghorn.types import Array, Codes

E4M3 = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)  # those not below 0


def lay_keys(code: Array, bits: int, ops: Any) -> Array:
    """Codes (n, page, dim) -> uint8 (n, word, page, 4)."""
    per = 32 // bits
    x = _wide(code, per, ops)
    n, page, dim = x.shape
    x = x.reshape((n, page, dim // per, 2, 8 // bits, 2))  # byte of the half, place in it, half
    words = ops.xp.permute_dims(_join(x, 4, bits, ops), (0, 2, 1, 4, 3))
    return ops.to(words, "uint8").reshape((n, dim // per, page, 4))


def read_keys(a: Array, bits: int, dim: int, ops: Any) -> Array:
    """The inverse of `lay_keys`, int32."""
    n, words, page, _ = a.shape
    x = _part(ops.to(a, "int32").reshape((n, words, page, 2, 2)), bits, ops)  # ..., half, byte of it, place
    return ops.xp.permute_dims(x, (0, 2, 1, 4, 5, 3)).reshape((n, page, words * 32 // bits))[..., :dim]


def lay_values(code: Array, bits: int, ops: Any) -> Array:
    """Codes (n, page, dim) -> uint8 (n, page, bytes)."""
    x = _wide(code, 32, ops)
    n, page, wide = x.shape
    x = x.reshape((n, page, wide * bits // 32, 8 // bits, 4))
    return ops.to(_join(x, 3, bits, ops), "uint8").reshape((n, page, wide * bits // 8))


def read_values(a: Array, bits: int, dim: int, ops: Any) -> Array:
    """The inverse of `lay_values`, int32."""
    n, page, size = a.shape
    x = _part(ops.to(a, "int32").reshape((n, page, size // 4, 4)), bits, ops)
    return ops.xp.permute_dims(x, (0, 1, 2, 4, 3)).reshape((n, page, size * 8 // bits))[..., :dim]


def _wide(code: Array, unit: int, ops: Any) -> Array:
    """int32, with zeros up to a multiple of `unit` channels."""
    code = ops.to(code, "int32")
    more = -code.shape[-1] % unit
    if not more:
        return code
    zero = ops.xp.zeros((*code.shape[:-1], more), dtype=code.dtype, device=code.device)
    return ops.xp.concat([code, zero], axis=-1)


def _join(x: Array, axis: int, bits: int, ops: Any) -> Array:
    parts = ops.xp.moveaxis(x, axis, 0)
    out = parts[0]
    for i in range(1, len(parts)):
        out = out | parts[i] << bits * i
    return out


def _part(x: Array, bits: int, ops: Any) -> Array:
    return ops.xp.stack([x >> bits * i & (1 << bits) - 1 for i in range(8 // bits)], axis=-1)


# ------------------------------------------------------------------------------ scales and offsets


def affine(x: Array, axis: int, bits: int, least: float, ops: Any) -> tuple[Array, Array, Array]:
    """Codes like x, and scale and offset along `axis`. A scale is `least` times the offset or more: with
    2**-6 the smallest value has code 0, whatever rounding did to the offset, and values that were codes once
    get the same codes, scale and offset again."""
    xp, most = ops.xp, (1 << bits) - 1
    low, top = xp.min(x, axis=axis, keepdims=True), xp.max(x, axis=axis, keepdims=True)
    low = bfloat(low, ops)
    scale = xp.maximum((top - low) / most, least * xp.abs(low))
    scale = bfloat(xp.maximum(scale, xp.zeros_like(scale)), ops)
    code = xp.round((x - low) / xp.where(scale > 0, scale, xp.ones_like(scale)))
    return xp.clip(code, 0, most), scale, low


def pack_rows(x: Array, c: Codes, ops: Any, least: float = 2.0**-6) -> tuple[Array, Array]:
    """Numbers by `affine` for each row's groups of channels: codes (n, page, dim), factors (n, group, 2,
    page)."""
    xp, codes, factors = ops.xp, [], []
    for at in range(0, x.shape[-1], c.group):
        code, scale, low = affine(x[..., at : at + c.group], -1, c.bits, least, ops)
        codes.append(code)
        factors.append(xp.stack([scale[..., 0], low[..., 0]], axis=1))
    return xp.concat(codes, axis=-1), ops.to(xp.stack(factors, axis=1), "bfloat16")


def pack_channels(x: Array, c: Codes, ops: Any) -> tuple[Array, Array]:
    """Numbers by `affine` for each channel: codes (n, page, dim), factors (n, 2 * dim)."""
    code, scale, low = affine(x, 1, c.bits, 0.0, ops)
    return code, ops.to(ops.xp.concat([scale, low], axis=1).reshape((len(x), 2 * x.shape[-1])), "bfloat16")


def values_of(code: Array, factors: Array, c: Codes, ops: Any) -> Array:
    """What codes (n, page, dim) and factors mean, in the compute dtype."""
    xp, each = ops.xp, 2 if c.offset else 1
    n, page, dim = code.shape
    level = _levels(code, c, ops)
    factors = ops.cast(factors)
    groups = -(-dim // c.group) if c.group else 0
    size = each * (groups * page or dim)
    own = f = factors
    if c.channels or c.rank:
        own, f = factors[:, -dim:], factors[:, :size]
    if c.rank:
        low = _beside.product(factors[:, size:], c.rank, page, ops)
        return values_of(code, f, replace(c, rank=0), ops) + low
    if not c.group:
        f = f.reshape((n, each, 1, dim))
        return level * f[:, 0] + (f[:, 1] if c.offset else 0)
    f = f.reshape((n, groups, each, page))
    parts = []
    for g in range(groups):
        x = level[..., g * c.group : (g + 1) * c.group] * f[:, g, 0, :, None]
        parts.append(x + f[:, g, 1, :, None] if c.offset else x)
    x = xp.concat(parts, axis=-1)
    return x * own[:, None] if c.channels else x


def _levels(code: Array, c: Codes, ops: Any) -> Array:
    if not c.levels and c.bits < 8:
        return ops.cast(code)
    table = np.array(c.levels) if c.levels else np.concatenate([E4M3, [0.0], -E4M3, [0.0]])
    return ops.cast(ops.array(table))[ops.to(code, "int64")]


def nearest(x: Array, levels: NDArray[np.float64], ops: Any) -> Array:
    """Index of the nearest of rising levels; halfway the lower one."""
    middle = ops.to(ops.array((levels[1:] + levels[:-1]) / 2), str(x.dtype).removeprefix("torch."))
    flat = ops.xp.searchsorted(middle, x.reshape((-1,)))
    return flat.reshape(x.shape)


def turn(x: Array, ops: Any, back: bool = False) -> Array:
    """x (..., dim) with a sign for each channel, times Hadamard's matrix of the largest power of two that
    divides dim, stretch by stretch, over that number's root; or back."""
    dim = x.shape[-1]
    width = dim & -dim
    sign = np.where(np.arange(dim, dtype=np.uint64) * 0x9E3779B1 & 0x80000000, -1.0, 1.0)
    by = ops.to(ops.array(sign / width**0.5), str(x.dtype).removeprefix("torch."))
    y, h = (x if back else x * by), 1
    while h < width:
        pairs = y.reshape((*x.shape[:-1], dim // (2 * h), 2, h))
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        y, h = ops.xp.stack([a + b, a - b], axis=-2).reshape(x.shape), 2 * h
    return y * by if back else y


# ------------------------------------------------------------------------------ pages


def fields_of(keys: tuple[Array, Array], values: tuple[Array, Array], codes: tuple[Codes, Codes],
              ops: Any) -> dict[str, Array]:  # fmt: skip
    """The arrays of `coded_fields` from (codes, factors) of keys and of values."""
    k, v = codes
    return {
        "k": lay_keys(keys[0], k.bits, ops), "kf": keys[1],
        "v": lay_values(values[0], v.bits, ops), "vf": values[1],
    }  # fmt: skip


def unpack(fields: dict[str, Array], codes: tuple[Codes, Codes], dim: int, ops: Any) -> tuple[Array, Array]:
    """Keys and values (n, page, dim)."""
    k, v = codes
    if k.bits == 16:
        keys = _beside.spread(fields["k"], fields.get("kf"), dim, ops)
    else:
        keys = _numbers(fields, "k", k, dim, ops)
    return keys, ops.cast(fields["v"]) if v.bits == 16 else _numbers(fields, "v", v, dim, ops)


def _numbers(fields: dict[str, Array], of: str, c: Codes, dim: int, ops: Any) -> Array:
    read = read_keys if of == "k" else read_values
    code = read(fields[of], c.bits, dim, ops)
    if c.salient:
        page, plane = code.shape[1], fields[of + "x"]
        size = plane.shape[1] - 2
        there = _beside.from_bits(plane[:, size:], page, ops)
        each = size // c.salient  # bytes of a row
        shape = (each // 4, c.salient, 4) if of == "k" else (c.salient, each)
        lower = read(plane[:, :size].reshape((len(plane), *shape)), c.bits, dim, ops)
        code = (code << c.bits) + _beside.placed(lower, there, code, ops)
    x = values_of(code, fields[of + "f"], c, ops)
    if of + "s" in fields:
        x = _beside.with_spikes(x, fields[of + "s"], ops)
    return turn(x, ops, True) if c.turn else x
