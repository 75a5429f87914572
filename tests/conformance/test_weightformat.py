"""Every weight format: its declared error, what its product means, and bytes that really shrink.

A format that is not exact declares `error`: the largest |stored - given| in units of its row's largest
magnitude.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pronghorn.errors import CheckpointError
from pronghorn.model.bind import bind
from pronghorn.ops.ref import Ops
from pronghorn.types import Guarantee
from tests.conformance import _find
from tests.conformance._rig import N_VOCAB, Small, small, weights

NAMES = _find.names("weight")
LOSSY = [
    n
    for n in NAMES
    if _find.defaults("weight", n).traits.guarantee is not Guarantee.EXACT
    and _find.defaults("weight", n).error > 0
]
TINY = float(ml_dtypes.finfo(ml_dtypes.bfloat16).tiny)


def matrix(seed: int, n_out: int = 24, n_in: int = 40, dtype: Any = np.float32) -> Any:
    r = np.random.default_rng(seed)
    w = r.standard_normal((n_out, n_in)) * np.exp(3 * r.standard_normal((n_out, 1)))
    w[5] = 0
    return w.astype(dtype)


def rows(fmt: Any, packed: Any, ops: Ops) -> Any:
    """The matrix as the format reads it."""
    return ops.numpy(fmt.take(packed, ops.array(np.arange(packed.shape[0])), ops))


def error(fmt: Any) -> float:
    return 0.0 if fmt.traits.guarantee is Guarantee.EXACT else float(fmt.error)


@pytest.mark.parametrize("name", LOSSY)
def test_error_is_declared(name: str) -> None:
    assert 0 < _find.defaults("weight", name).error < 0.7


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_declared_error(name: str, dtype: Any) -> None:
    fmt, worst = _find.defaults("weight", name), 0.0
    for seed in range(10):
        n_in = 4096 if seed == 9 else 40  # in long rows it pays to clip the largest magnitudes
        w = np.clip(matrix(seed, n_in=n_in), -6e4, 6e4).astype(dtype)
        packed = fmt.pack(w)
        assert packed.shape == w.shape
        got = rows(fmt, packed, Ops("float64"))
        wide = w.astype(np.float64)
        top = np.abs(wide).max(axis=1, keepdims=True)
        assert (np.abs(got - wide) <= error(fmt) * top + TINY * (error(fmt) > 0)).all()
        assert (got[5] == 0).all()
        worst = max(worst, (np.abs(got - wide) / np.where(top > 0, top, 1)).max())
    if dtype is np.float32 and error(fmt):
        assert worst > 0.4 * error(fmt), "the declared error is idle"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_product_is_that_of_the_rows(name: str, library: str) -> None:
    torch = pytest.importorskip("torch") if library == "torch" else None
    fmt, ops = _find.defaults("weight", name), Ops("float64", torch)
    packed = fmt.pack(matrix(1))
    fields = {k: ops.array(a) for k, a in packed.fields.items()}
    packed = replace(packed, fields=fields)
    x = np.random.default_rng(2).standard_normal((7, 40))
    got = ops.numpy(fmt.matmul(ops.array(x), packed, ops))
    want = x @ rows(fmt, packed, ops).T
    assert got == pytest.approx(want, rel=1e-12, abs=1e-12 * np.abs(want).max())
    pick = np.array([3, 0, 3, 23])
    assert (ops.numpy(fmt.take(packed, ops.array(pick), ops)) == rows(fmt, packed, ops)[pick]).all()


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_packed_alike_in_any_matrix(name: str) -> None:
    """Packing works in blocks of rows; where a row lies does not matter."""
    fmt, ops = _find.defaults("weight", name), Ops("float32")
    w = np.random.default_rng(0).standard_normal((2500, 16)).astype(np.float32)
    whole = rows(fmt, fmt.pack(w), ops)
    for i in (0, 1023, 1024, 2499):
        assert (rows(fmt, fmt.pack(w[i : i + 1]), ops)[0] == whole[i]).all()


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_cannot_be_stored_is_refused(name: str, value: float) -> None:
    w = matrix(0)
    w[3, 4] = value
    with pytest.raises(CheckpointError):
        _find.defaults("weight", name).pack(w)


@pytest.mark.parametrize("name", LOSSY)
def test_bytes_and_the_model(name: str) -> None:
    fmt = _find.defaults("weight", name)
    bound, plain = small(formats=(fmt,)), small()
    claimed = [p for p, f in bound.mats.values() if f is fmt]
    assert len(claimed) == len(plain.mats)
    for p in claimed:
        assert p.nbytes < 0.6 * 4 * np.prod(p.shape)
    assert bound.weight_bytes < 0.7 * plain.weight_bytes
    ids = np.random.default_rng(1).integers(0, N_VOCAB, 20).tolist()
    got, want = Small(bound).feed(ids, 20), Small(plain).feed(ids, 20)
    assert np.abs(got - want).max() > 0
    # the model that runs is the one whose matrices are what the format reads
    ops, (tape, tensors) = Ops("float64"), weights()
    read = {k: rows(fmt, fmt.pack(w), ops) if w.ndim == 2 else w for k, w in tensors.items()}
    assert np.abs(got - Small(bind(tape, read, taps=("q.last1",))).feed(ids, 20)).max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_tied_head_is_stored_once(name: str) -> None:
    bound = small(formats=(_find.defaults("weight", name),))
    _, tensors = weights()
    assert set(bound.mats) == {k for k, w in tensors.items() if w.ndim == 2}


def test_bf16_leaves_a_bf16_matrix_alone() -> None:
    w = matrix(0).astype(ml_dtypes.bfloat16)
    packed = _find.defaults("weight", "bf16").pack(w)
    assert packed.fields["w"] is w


def test_bf16_refuses_what_overflows() -> None:
    w = np.full((2, 2), np.finfo(np.float32).max, np.float32)
    with pytest.raises(CheckpointError):
        _find.defaults("weight", "bf16").pack(w)
