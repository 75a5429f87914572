"""The search for scales: as good as trying everything, bounded, and blind to where a row lies."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from pronghorn.compose import load, parse
from pronghorn.errors import CheckpointError, MethodError
from pronghorn.ops.codes import Codes, Grid
from pronghorn.ops.panels import pack, unpack
from pronghorn.quantize.fit import codes, fit, levels
from tests import fit_by_numpy

NF4 = load("weight", "nf4")().grid
SYMMETRIC = [
    Grid(8, 0, scale="float32"), Grid(8, 32), Grid(4, 32), Grid(4, 128), Grid(3, 32), Grid(2, 32),
    Grid(4, 32, scale="bfloat16"), Grid(5, 32), Grid(6, 16), NF4,
]  # fmt: skip
AFFINE = [Grid(b, g, False, offset="value") for b in (4, 3, 2) for g in (32, 128)]


def normal(seed: int, n_out: int = 40, n_in: int = 256, df: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(df, (n_out, n_in)).astype(np.float32)


def error(c: Codes, w: np.ndarray) -> float:
    return float(((c.dense() - w) ** 2).sum())


def by_trying(w: np.ndarray, grid: Grid) -> float:
    """The least error over 2 x 300 scales for each group."""
    group = grid.group or w.shape[1]
    cut = w.reshape(len(w), -1, group)
    top = np.abs(cut).max(axis=2)
    best = np.full(top.shape, np.inf)
    last = 127 if grid.table else 2.0 ** (grid.bits - 1)
    for f in np.linspace(0.4, 1.15, 300):
        for sign in (-1, 1):
            a = (sign * f * top / last)[:, :, None]
            q = levels((cut / a).astype(np.float32), grid)
            best = np.minimum(best, ((cut - a * q) ** 2).sum(axis=2))
    return float(best.sum())


@pytest.mark.parametrize("grid", SYMMETRIC, ids=str)
def test_as_good_as_trying_everything(grid: Grid) -> None:
    for df in (5, 50):
        w = normal(1, df=df)
        # with many levels some scale among hundreds is always lucky
        assert error(fit(w, grid), w) < (1.2 if grid.bits > 5 else 1.04) * by_trying(w, grid)


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("grid", [*SYMMETRIC, *AFFINE], ids=str)
def test_the_same_as_in_numpy(grid: Grid, weighed: bool) -> None:
    """Up to ties. With many levels candidates differ by less than the rounding of the sums that compare
    them, so that only the error says something there."""
    w, rng = normal(8, 100, 384, df=4), np.random.default_rng(9)
    h = (rng.exponential(1, 384) if weighed else np.ones(384)).astype(np.float32)
    one, other = fit(w, grid, h), fit_by_numpy.fit(w, grid, h)
    if grid.bits < 6:
        assert (one.scale == other.scale).mean() > 0.9
        assert (one.code == other.code).mean() > 0.99
    worse = ((one.dense() - w) ** 2 @ h).sum() / ((other.dense() - w) ** 2 @ h).sum()
    assert worse == pytest.approx(1, abs=1e-4 if grid.bits < 6 else 1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16], ids=str)
def test_weights_of_any_dtype_and_layout(dtype: type) -> None:
    """Read as they are stored, rows or columns apart; all rows alike whatever the threads do."""
    w = normal(10, 700, 200).astype(dtype)
    for grid in (Grid(4, 32), Grid(8, 0, scale="float32")):
        plain = fit(w.astype(np.float32), grid)
        for same in (w, np.asfortranarray(w), np.repeat(w, 2, axis=1)[:, ::2], w[::-1][::-1]):
            got = fit(same, grid)
            assert (got.code == plain.code).all()
            assert (got.scale == plain.scale).all()
        assert (fit(w[37:41], grid).code == plain.code[37:41]).all()


def test_scales_are_rounded_to_nearest() -> None:
    """Constants: the only scales there are come out of every range of half precision and of bfloat16."""
    rng = np.random.default_rng(11)
    sizes = 2.0 ** rng.uniform(-30, 15, 500)
    for scale in ("float16", "bfloat16"):
        w = np.repeat(sizes[:, None], 32, axis=1).astype(np.float32)
        one, other = (
            f(w, Grid(2, 32, scale=scale), np.ones(32, np.float32)) for f in (fit, fit_by_numpy.fit)
        )
        apart = np.abs(one.scale.astype(np.float32) - other.scale.astype(np.float32))
        assert (apart <= np.abs(np.spacing(other.scale)).astype(np.float32)).all()
        assert (one.scale == other.scale).mean() > 0.95


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_an_offset_pays(bits: int) -> None:
    w = normal(2)
    assert error(fit(w, Grid(bits, 32, False, offset="value")), w) < 0.9 * error(fit(w, Grid(bits, 32)), w)
    shifted = np.abs(w)  # a group on one side of zero
    with_it, without = (fit(shifted, g) for g in (Grid(bits, 32, False, offset="value"), Grid(bits, 32)))
    assert error(with_it, shifted) < 0.5 * error(without, shifted)


@pytest.mark.parametrize("grid", SYMMETRIC[2:7], ids=str)
def test_better_than_the_largest_magnitude(grid: Grid) -> None:
    w = normal(3)
    cut = w.reshape(len(w), -1, grid.group)
    last = (1 << (grid.bits - 1)) - 1
    a = np.abs(cut).max(axis=2, keepdims=True) / last
    plain = ((np.clip(np.rint(cut / a), -last, last) * a - cut) ** 2).sum()
    assert error(fit(w, grid), w) < 0.8 * plain


@pytest.mark.parametrize("grid", [*SYMMETRIC, *AFFINE], ids=str)
def test_values_on_the_grid_come_back(grid: Grid) -> None:
    """A matrix that is on a grid already is found again, whatever the sign of its scales."""
    rng = np.random.default_rng(4)
    group = grid.group or 256
    level = rng.integers(0, 1 << grid.bits, (16, 256 // group, group), np.uint8)
    level[:, :, :2] = [0, (1 << grid.bits) - 1]  # all of the range is used
    q = np.asarray(grid.table)[level] if grid.table else level.astype(int) - grid.zero
    a = (rng.uniform(0.5, 1, (16, 256 // group, 1)) * rng.choice([-1, 1], (16, 256 // group, 1))) / 64
    b = rng.uniform(-1, 1, a.shape) if grid.offset else 0
    w = (a * q + b).reshape(16, 256).astype(np.float32)
    got = fit(w, grid).dense()
    step = np.abs(a).max() * np.abs(q).max()
    assert np.abs(got - w).max() < 2e-3 * (step + (1 if grid.offset else 0))


@pytest.mark.parametrize("grid", [*SYMMETRIC, *AFFINE], ids=str)
@pytest.mark.parametrize("n_in", [1, 5, 31, 33, 100, 257])
def test_odd_widths(grid: Grid, n_in: int) -> None:
    w = normal(5, 17, n_in)
    c = fit(w, grid)
    assert unpack(pack(c)).dense() == pytest.approx(c.dense())
    whole = fit(np.pad(w, ((0, 0), (0, -n_in % (grid.group or 1)))), grid)
    if not grid.offset:  # zeros past the end change nothing
        assert (c.code == whole.code[:, :n_in]).all()
    coarse = error(fit(w, Grid(2, grid.group, scale=grid.scale)), w)
    assert error(c, w) <= coarse + 1e-4 * (w**2).sum()


@pytest.mark.parametrize("grid", [*SYMMETRIC, *AFFINE], ids=str)
def test_zeros_and_constants(grid: Grid) -> None:
    assert (fit(np.zeros((3, 64), np.float32), grid).dense() == 0).all()
    same = np.full((3, 64), -0.25, np.float32)
    assert fit(same, grid).dense() == pytest.approx(same, rel=1e-3)


@pytest.mark.parametrize("grid", [Grid(3, 32), Grid(3, 32, False, offset="value"), NF4], ids=str)
def test_importance(grid: Grid) -> None:
    """Inputs that matter are stored better, at the cost of those that do not."""
    w, h = normal(6), np.ones(256, np.float32)
    h[::8] = 50
    plain, weighted = ((fit(w, grid, i).dense() - w) ** 2 for i in (np.ones(256, np.float32), h))
    assert (weighted @ h).sum() < 0.9 * (plain @ h).sum()
    assert weighted.sum() > plain.sum()
    even = fit(w, grid)
    assert (fit(w, grid, np.ones(256, np.float32)).dense() == even.dense()).mean() > 0.99


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(4, 32, False, offset="value")], ids=str)
def test_what_does_not_fit_is_refused(grid: Grid) -> None:
    w = normal(7)
    with pytest.raises(CheckpointError, match="too large"):
        fit(w * np.float32(1e6), grid)
    w[20, 3] = np.nan
    with pytest.raises(CheckpointError, match="NaN"):
        fit(w, grid)


def test_table_levels_are_the_nearest() -> None:
    x = np.linspace(-140, 140, 28001, dtype=np.float32)
    q = levels(x.copy(), NF4)
    far = np.abs(x[:, None] - np.asarray(NF4.table)[None])
    assert (np.abs(x - q) <= far.min(axis=1) + 1e-5).all()
    assert (np.asarray(NF4.table)[codes(q, NF4)] == q).all()


@pytest.mark.parametrize(
    ("spec", "way"),
    [
        ("int4:group=48", "32, 64, 128"), ("weight.int8:group=16", "0, 32, 64, 128"),
        ("int3:group=0", "32, 64, 128"), ("nf4:group=31", "32, 64, 128"),
        ("int2:activations=4", "8, 16"), ("int4:bits=3", "group"),
    ],
)  # fmt: skip
def test_wrong_options(spec: str, way: str) -> None:
    with pytest.raises(MethodError, match=way):
        parse(spec)


def test_patterns() -> None:
    _, f = parse("weight.int8:only=lm_head*+*embed*")
    assert f.claims("lm_head.weight", (4, 4))
    assert f.claims("model.embed_tokens.weight", (4, 4))
    assert not f.claims("model.layers.0.mlp.up_proj.weight", (4, 4))
    assert not f.claims("lm_head.weight", (4,))
    assert parse("int4")[1].claims("anything", (4, 4))
