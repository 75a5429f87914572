"""The layout in which kernels read small integers.

A matrix lies in panels of 16 outputs, each one stream of memory from its first input to its last. A panel is
a row of blocks of 256 inputs, the last one as short as its inputs; a block is

    scales    (n_groups, 16)   of the grid's scale dtype, int8 for "two"
    offsets   (n_groups, 16)   where the grid has them
    over      (16,) float16    where the scale is "two"
    under     (16,) float16    where the offset is "two"
    -- filled up to 64 bytes --
    codes     units of 32 inputs

and has no scales where one serves a whole row: those lie apart, float32. A unit is 8 steps of 4 inputs, a
step 16 outputs x 4 inputs, 64 codes. Codes of 8 bits lie step after step. The low 4 bits of a code of 4, 5
or 6 bits lie in 4 vectors of 64 bytes, of which vector v has step v below and step v + 4 above; the low 2
bits of a code of 2 or 3 in 2 vectors, of which v has steps v, v + 2, v + 4, v + 6 from the lowest bits up.
What a code has beyond them follows: for 5 and 3 bits one vector whose bit s belongs to step s, for 6 bits 2
vectors like those of 2 bits. Inputs and outputs past the end are code 0 with scale 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.ops.codes import AS_THEY_COME, NONE, SUPER, Codes, Grid
from pronghorn.ops.cpu import _native
from pronghorn.types import Packed

PANEL, UNIT, LINE = 16, 32, 64
LOW = {2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 8: 8}  # bits of a code that lie in the first vectors
HIGH = {2: 0, 3: 1, 4: 0, 5: 1, 6: 2, 8: 0}

SCALES = {"float16": 0, "bfloat16": 1, "float32": 2, "two": 3}  # as the native extension counts them
OFFSETS = {"": 0, "value": 1, "zero": 2, "two": 3}


def _lines(n: int) -> int:
    return -(-n // LINE) * LINE


def _parts(grid: Grid, n_groups: int) -> list[tuple[str, int, str]]:
    """Arrays before a block's codes: name, groups, dtype."""
    if grid.group == 0:
        return []
    scale = "int8" if grid.scale == "two" else grid.scale
    out = [("scale", n_groups, scale)]
    if grid.offset:
        out.append(("offset", n_groups, scale if grid.offset == "value" else "uint8"))
    if grid.scale == "two":
        out.append(("over", 1, "float16"))
    if grid.offset == "two":
        out.append(("under", 1, "float16"))
    return out


def _before(grid: Grid, n_groups: int) -> int:
    """Bytes before a block's codes."""
    return _lines(sum(n * PANEL * dtype_of(d).itemsize for _, n, d in _parts(grid, n_groups)))


def dtype_of(name: Any) -> np.dtype[Any]:
    """NumPy's dtype of a scale or an offset, by the grid's name for it."""
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    made: np.dtype[Any] = np.dtype(name)
    return made


def stride(grid: Grid, n_in: int) -> int:
    """Bytes from panel to panel: an odd number of cache lines, so that panels read side by side do not
    meet in one set of the cache."""
    n = 0
    for at in range(0, n_in, SUPER):
        some = min(SUPER, n_in - at)
        n += _before(grid, grid.n_groups(some)) + -(-some // UNIT) * UNIT * PANEL * grid.bits // 8
    return n if n // LINE % 2 else n + LINE


def numbers(grid: Grid) -> tuple[list[int], list[int]]:
    """A grid and its table as the native extension takes them."""
    return [
        grid.bits, grid.group, grid.centred, SCALES[grid.scale], OFFSETS[grid.offset], grid.activations
    ], list(grid.table)  # fmt: skip


def raw(a: NDArray[Any]) -> NDArray[np.uint8]:
    """A matrix's bytes (n_rows, n), (0, 0) for nothing; a view where it lies row after row."""
    return np.ascontiguousarray(a).view(np.uint8) if a.size else np.zeros((0, 0), np.uint8)


def pack(codes: Codes) -> Packed:
    """Kind "codes", with fields panels uint8 (n_panels, stride), and scale float32 (n_out,) where one
    serves a row, order int32 (n_in,) where inputs have one."""
    grid, (n_out, n_in) = codes.grid, codes.shape
    panels = _native.room(-(-n_out // PANEL), stride(grid, n_in))
    _native.pack(
        np.ascontiguousarray(codes.code), raw(codes.scale), raw(codes.offset), raw(codes.over),
        raw(codes.under), *numbers(grid), panels,
    )  # fmt: skip
    fields: dict[str, Any] = {"panels": panels}
    if grid.group == 0:
        fields["scale"] = np.ascontiguousarray(codes.scale[:, 0], np.float32)
    if codes.order.size:
        fields["order"] = codes.order
    return Packed("codes", codes.shape, fields, grid)


def unpack(packed: Packed) -> Codes:
    """What `pack` was given."""
    grid = packed.grid
    assert grid is not None
    (n_out, n_in), panels = packed.shape, np.asarray(packed.fields["panels"])
    n_panels = len(panels)
    found: dict[str, list[NDArray[Any]]] = {"scale": [], "offset": [], "over": [], "under": []}
    code = np.empty((n_out, n_in), np.uint8)
    at = 0
    for k in range(0, n_in, SUPER):
        some = min(SUPER, n_in - k)
        n_groups, n_units = grid.n_groups(some), -(-some // UNIT)
        to = at
        for name, n, dtype in _parts(grid, n_groups):
            size = n * PANEL * dtype_of(dtype).itemsize
            raw = np.ascontiguousarray(panels[:, to : to + size]).view(dtype_of(dtype))
            part = raw.reshape(n_panels, n, PANEL).transpose(0, 2, 1).reshape(-1, n)
            found[name].append(part[:n_out])
            to += size
        at += _before(grid, n_groups)
        size = n_units * UNIT * PANEL * grid.bits // 8
        units = panels[:, at : at + size].reshape(n_panels, n_units, grid.bits, LINE)
        low = LOW[grid.bits]
        steps = _apart(units[:, :, :low], low)
        if HIGH[grid.bits]:
            steps |= _apart(units[:, :, low:], HIGH[grid.bits]) << np.uint8(low)
        rows = steps.reshape(n_panels, n_units, 8, PANEL, 4).transpose(0, 3, 1, 2, 4)
        code[:, k : k + some] = rows.reshape(n_panels * PANEL, n_units * UNIT)[:n_out, :some]
        at += size
    if grid.group == 0:
        found["scale"] = [np.asarray(packed.fields["scale"], np.float32)[:, None]]
    joined = {name: np.concatenate(parts, axis=1) if parts else NONE for name, parts in found.items()}
    return Codes(grid, code, **joined, order=np.asarray(packed.fields.get("order", AS_THEY_COME)))


def factors(packed: Packed) -> Iterator[NDArray[Any]]:
    """Block by block, the scales and offsets that are floats, (n_panels, n) of their own dtype."""
    grid, panels = packed.grid, np.asarray(packed.fields["panels"])
    assert grid is not None
    at = 0
    for k in range(0, packed.shape[1], SUPER):
        some = min(SUPER, packed.shape[1] - k)
        n_groups, to = grid.n_groups(some), at
        for _, n, name in _parts(grid, n_groups):
            dtype = dtype_of(name)
            size = n * PANEL * dtype.itemsize
            if dtype.itemsize > 1:
                yield np.ascontiguousarray(panels[:, to : to + size]).view(dtype)
            to += size
        at += _before(grid, n_groups) + -(-some // UNIT) * UNIT * PANEL * grid.bits // 8


def _apart(vectors: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Vectors (.., bits, 64) that hold `bits` bits for each of 8 steps -> (.., 8, 64)."""
    if bits == 8:
        return np.array(vectors)
    mask = np.uint8((1 << bits) - 1)
    parts = [(vectors[:, :, s % bits] >> np.uint8(s // bits * bits)) & mask for s in range(8)]
    out: NDArray[np.uint8] = np.stack(parts, axis=2)
    return out
