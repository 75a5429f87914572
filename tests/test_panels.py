"""The kernels' layout of small integers: what goes in comes out, and the grids say what they mean."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pronghorn.ops.codes import NONE, SUPER, Codes, Grid
from pronghorn.ops.panels import LINE, pack, unpack

NF4 = (-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127)


def grids() -> list[Grid]:
    out = []
    for bits in (2, 3, 4, 5, 6, 8):
        out.append(Grid(bits, 0, scale="float32"))
        for group in (16, 32, 64, 128):
            for scale in ("float16", "bfloat16"):
                out += [Grid(bits, group, o == "", (), scale, o) for o in ("", "value", "zero")]
        out += [Grid(bits, g, o == "", (), "two", o) for g in (16, 32) for o in ("", "two")]
    return [
        *out,
        Grid(4, 32, table=NF4),
        Grid(4, 32, activations=16),
        Grid(8, 0, scale="float32", activations=16),
    ]


def some_codes(grid: Grid, n_out: int, n_in: int, rng: np.random.Generator) -> Codes:
    groups, supers = (n_out, grid.n_groups(n_in)), (n_out, -(-n_in // SUPER))

    def floats(shape: tuple[int, int], dtype: str) -> np.ndarray:
        real = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        return (rng.uniform(0.5, 1.5, shape) / 2**grid.bits).astype(real)

    two = grid.scale == "two"
    offset = {
        "": lambda: NONE,
        "value": lambda: floats(groups, grid.scale),
        "zero": lambda: rng.integers(0, 1 << grid.bits, groups, np.uint8),
        "two": lambda: rng.integers(0, 64, groups, np.uint8),
    }[grid.offset]()
    return Codes(
        grid,
        rng.integers(0, 1 << grid.bits, (n_out, n_in), np.uint8),
        rng.integers(-32, 64, groups, np.int8) if two else floats(groups, grid.scale),
        offset,
        floats(supers, "float16") if two else NONE,
        floats(supers, "float16") if grid.offset == "two" else NONE,
    )


@pytest.mark.parametrize("grid", grids(), ids=str)
def test_packing_and_back(grid: Grid) -> None:
    @settings(max_examples=8, deadline=None)
    @given(st.integers(1, 40), st.integers(1, 600), st.integers(0, 2**32))
    def check(n_out: int, n_in: int, seed: int) -> None:
        codes = some_codes(grid, n_out, n_in, np.random.default_rng(seed))
        packed = pack(codes)
        assert packed.fields["panels"].shape[1] // LINE % 2 == 1
        back = unpack(packed)
        for name in ("code", "scale", "offset", "over", "under"):
            assert np.array_equal(getattr(back, name), getattr(codes, name)), name

    check()


def test_size_in_memory() -> None:
    """4 bits in groups of 32 with one float16 each are 4.5 bits, and little is lost to filling up."""
    codes = some_codes(Grid(4, 32), 512, 2048, np.random.default_rng(0))
    assert pack(codes).nbytes <= 512 * 2048 * 4.5 / 8 * 1.01


def test_dense_is_scale_times_level_plus_offset() -> None:
    grid = Grid(4, 32, False, (), "float16", "zero")
    codes = some_codes(grid, 3, 70, np.random.default_rng(1))
    for o in range(3):
        for i in range(70):
            s = float(codes.scale[o, i // 32])
            want = np.float32(s * (int(codes.code[o, i]) - int(codes.offset[o, i // 32])))
            assert codes.dense()[o, i] == want


def test_arrays_that_do_not_fit_are_refused() -> None:
    codes = some_codes(Grid(4, 32), 4, 64, np.random.default_rng(2))
    with pytest.raises(ValueError, match="scale"):
        Codes(codes.grid, codes.code, codes.scale[:, :1], NONE, NONE, NONE)
    with pytest.raises(ValueError, match="no such grid"):
        Grid(4, 48)
