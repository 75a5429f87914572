"""Products with small integers in the native kernels: against exact arithmetic over the same integers, for
every grid, with odd shapes, on every instruction set; and the same bits whatever the rows and threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pronghorn.model.bind import bind
from pronghorn.model.tape import Param, Tape
from pronghorn.ops.codes import NONE, Codes, Grid
from pronghorn.ops.cpu import _native
from pronghorn.ops.ref import Ops
from pronghorn.run.native import NativeRunner
from tests.native_tapes import Chunk, Driver, store_for
from tests.test_panels import grids, some_codes

ISAS = _native.isas()
SHAPES = ((16, 32, 1), (33, 257, 5), (40, 528, 2), (70, 100, 17), (23, 1, 1), (130, 768, 60))


def bound_for(tensors: dict[str, Any], scale: float = 1.0) -> Any:
    """x is the embedding and w the head; a layer whose attention nobody reads stands between, since a store
    wants one."""
    n_out, n_in = tensors["w"].shape
    tape = Tape(1, 1, 1, 16, n_out, 4096)
    x = tape.embed(Param("x", (n_out, n_in)), scale)
    tape.begin(0, x)
    q = tape.linear(x, Param("q", (16, n_in)))
    tape.attend(q, q, q, scale=1.0, softcap=0.0, window=0)
    tape.end(x)
    tape.head(x, Param("w", (n_out, n_in)), scale=1.0, softcap=0.0)
    return bind(tape, tensors | {"q": np.zeros((16, n_in), np.float32)}, taps=("hidden.-1",))


def runner_for(codes: Codes, x: np.ndarray, threads: int = 1) -> Any:
    """Embeds row i of x for token i, and multiplies it with the matrix."""
    n_out, n_in = codes.shape
    rows = np.zeros((n_out, n_in), np.float32)
    rows[: len(x)] = x
    bound = bound_for({"x": rows, "w": codes})
    return NativeRunner(bound, store_for(bound, Ops("float32")), threads)


def products(codes: Codes, x: np.ndarray, threads: int = 1) -> np.ndarray:
    driver = Driver(runner_for(codes, x, threads), 1)
    return driver.step([Chunk(0, list(range(len(x))))])[0]


def rounded(x: np.ndarray, grid: Grid) -> np.ndarray:
    """The inputs as the kernels round them, in float64."""
    per = max(32, grid.group) if grid.group else 128
    most = np.float32(127 if grid.activations == 8 else 32767)
    out = np.zeros(x.shape, np.float64)
    for i in range(0, x.shape[1], per):
        part = x[:, i : i + per].astype(np.float32)
        top = np.abs(part).max(axis=1, keepdims=True)
        by = np.divide(most, top, out=np.zeros_like(top), where=top > 0)
        out[:, i : i + per] = np.rint(part * by) * (top / most).astype(np.float64)
    return out


def exact(codes: Codes, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Products in float64, and the sum of what they add up in magnitude."""
    w = codes.dense().astype(np.float64)
    x = rounded(x, codes.grid)
    return x @ w.T, np.abs(x) @ np.abs(w).T


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("grid", grids(), ids=str)
def test_products(grid: Grid, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    rng = np.random.default_rng(3)
    for n_out, n_in, n in (
        (16, 32, 1),
        (33, 257, 5),
        (40, 528, 2),
        (70, 100, 17),
        (23, 1, 1),
        (130, 768, 60),
    ):
        codes = some_codes(grid, n_out, n_in, rng)
        x = (rng.normal(size=(min(n, n_out), n_in)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
        y, size = exact(codes, x)
        got = products(codes, x)
        worst = np.abs(got - y).max() / size.max()
        assert worst < 2e-6, (n_out, n_in, n, worst)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("act", [8, 16])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_products_at_their_extremes(bits: int, act: int, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest codes against the largest inputs, all of one sign in some rows: no sum runs over, and
    what float32 holds exactly comes out exactly."""
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    rng = np.random.default_rng(bits)
    most, n_in = 127 if act == 8 else 32767, 256
    for centred in (True, False):
        grid = Grid(bits, 128, centred, activations=act)
        code = rng.choice(np.array([0, (1 << bits) - 1], np.uint8), size=(48, n_in))
        code[0], code[1] = 0, (1 << bits) - 1
        scale = np.exp2(rng.integers(-9, 9, (48, 2))).astype(np.float16)
        codes = Codes(grid, code, scale, NONE, NONE, NONE)
        x = rng.choice(np.float32([-most, most]), size=(33, n_in))
        x[0], x[1] = most, -most
        sums = [x[:, g : g + 128] @ codes.levels()[:, g : g + 128].T.astype(np.float64) for g in (0, 128)]
        want = sum(s.astype(np.float32) * scale[:, i] for i, s in enumerate(sums))
        assert np.allclose(products(codes, x), want, rtol=3e-7, atol=0), (bits, centred)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("grid", [g for g in grids() if g.scale != "bfloat16"], ids=str)
def test_a_row_does_not_depend_on_the_others(grid: Grid, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    rng = np.random.default_rng(4)
    codes = some_codes(grid, 210, 600, rng)
    x = rng.normal(size=(200, 600)).astype(np.float32)
    all_of_them = products(codes, x, threads=2)
    for n in (1, 2, 3, 5, 8, 11, 12, 13, 16, 31, 49):
        assert np.array_equal(products(codes, x[:n]), all_of_them[:n]), n


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("grid", grids(), ids=str)
def test_rows_of_an_embedding(grid: Grid, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    rng = np.random.default_rng(5)
    codes = some_codes(grid, 37, 300, rng)
    bound = bound_for({"x": codes, "w": np.zeros((37, 300), np.float32)})
    driver = Driver(NativeRunner(bound, store_for(bound, Ops("float32")), 1), 1)
    driver.step([Chunk(0, list(range(37)))], taps=True)
    got = driver.out.taps["final"]
    assert np.array_equal(got, codes.dense())


@pytest.mark.parametrize("bits", [8, 16])
def test_inputs_that_are_not_finite_show(bits: int) -> None:
    codes = some_codes(Grid(4, 32, activations=bits), 16, 64, np.random.default_rng(6))
    x = np.ones((16, 64), np.float32)
    x[1, 40] = 3e38
    bound = bound_for({"x": x, "w": codes}, scale=10.0)
    driver = Driver(NativeRunner(bound, store_for(bound, Ops("float32")), 1), 1)
    y = driver.step([Chunk(0, [0, 1])])[0]
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).all()


def test_what_codes_cost_in_accuracy() -> None:
    """Inputs of 16 bits lose next to nothing, those of 8 bits a few parts in a thousand."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(4, 1024)).astype(np.float32)
    lost = {}
    for bits in (8, 16):
        codes = some_codes(Grid(8, 32, activations=bits), 64, 1024, np.random.default_rng(8))
        y = x.astype(np.float64) @ codes.dense().astype(np.float64).T
        lost[bits] = np.abs(products(codes, x) - y).std() / y.std()
    assert lost[16] < 5e-5 < 1e-3 < lost[8] < 1e-2, lost
