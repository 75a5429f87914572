"""Pages of which some rows have 4 bits a code and the others 2 (`Codes.salient`), and which those are."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pronghorn.methods.kvfmt import _beside, _codes
from pronghorn.types import Array, Codes


def wide(c: Codes) -> Codes:
    """Of all rows what such a coding has of the salient ones."""
    return replace(c, bits=2 * c.bits, salient=0) if c.salient else c


def fields_of(keys: tuple[Array, Array], values: tuple[Array, Array], rows: Array, codes: tuple[Codes, Codes],
              ops: Any) -> dict[str, Array]:  # fmt: skip
    """The arrays of `coded_fields` from (codes, factors) of keys and of values by `wide`: rows (n, page) bool
    keep their codes, in the others one becomes the nearest of 0, 5, 10 and 15."""
    upper, lower = [], []
    for code, factors in (keys, values):
        code = ops.to(code, "int32")
        upper.append((ops.xp.where(rows[..., None], code >> 2, (2 * code + 5) // 10), factors))
        lower.append(code & 3)
    number = ops.xp.argsort(1 - ops.to(rows, "int32"), axis=1, stable=True)[:, : codes[0].salient]
    pages, mask = _beside.each(len(rows), ops, rows), _beside.to_bits(rows, ops)
    words = ops.xp.permute_dims(_codes.lay_keys(lower[0], 2, ops), (0, 2, 1, 3))[pages, number]
    values_more = _codes.lay_values(lower[1], 2, ops)[pages, number]
    out = _codes.fields_of(upper[0], upper[1], codes, ops)
    for name, plane in (("kx", ops.xp.permute_dims(words, (0, 2, 1, 3))), ("vx", values_more)):
        size = math.prod(plane.shape[1:])
        out[name] = ops.xp.concat([plane.reshape((len(plane), size)), mask], axis=1)
    return out


def separated(x: Array, by: Array, codes: Codes, ops: Any) -> tuple[Array, Array]:
    """Codes of x (n, page, dim) divided by channels' factors `by` (n, 1, dim), and the factors of rows, then
    those of channels, (n, group * 2 * page + dim)."""
    xp, by = ops.xp, _codes.bfloat(by, ops)
    code, factors = _codes.pack_rows(x / xp.where(by > 0, by, xp.ones_like(by)), codes, ops, 0.0)
    flat = factors.reshape((len(x), math.prod(factors.shape[1:])))
    return code, xp.concat([flat, ops.to(by, "bfloat16")[:, 0]], axis=-1)
