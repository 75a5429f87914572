"""Every KV format: its declared error, pages packed one by one, and bytes that really shrink.

A format declares `error`: the largest |stored - given| in units of its row's largest magnitude, of its
page's where rows are packed together. Where its `unit` is "length": the length of stored - given in units
of given's.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pronghorn.kv.layout import ALIGN, PAGE, Layout, exact_fields, grouping, itemsize
from pronghorn.kv.store import Store
from pronghorn.nulls import Dense
from pronghorn.ops.ref import Ops
from pronghorn.slots import Merging
from tests.conformance import _find
from tests.conformance._rig import N_VOCAB, Small, small

NAMES = _find.names("kvfmt")
PACKED = [n for n in NAMES if _find.defaults("kvfmt", n).group > 0]
EXACT = [n for n in NAMES if n not in PACKED]
DIM = 8
TINY = float(ml_dtypes.finfo(ml_dtypes.bfloat16).tiny)  # below it scales lose precision


def pages(seed: int, n: int = 5, dim: int = DIM, dtype: str = "float32") -> Any:
    r = np.random.default_rng(seed)
    x = r.standard_normal((n, PAGE, dim)) * np.exp(4 * r.standard_normal((n, PAGE, 1)))
    x[r.random((n, PAGE)) < 0.1] = 0
    return x.astype(dtype)


def trip(fmt: Any, k: Any, v: Any, ops: Ops) -> Any:
    """Through `pack`, the fields' own dtypes, and `unpack`."""
    packed = fmt.pack(ops.array(k), ops.array(v), ops)
    stored = {f.name: ops.to(packed[f.name], f.dtype) for f in fmt.fields(PAGE, k.shape[-1])}
    return [ops.numpy(a) for a in fmt.unpack(stored, k.shape[-1], ops)]


def _unit(fmt: Any) -> Any:
    return (-2, -1) if fmt.group > 1 else -1


def within(fmt: Any, got: Any, given_: Any) -> None:
    if getattr(fmt, "unit", "") == "length":
        off = np.linalg.norm(got.astype(np.float64) - given_, axis=-1)
        assert (off <= fmt.error * np.linalg.norm(given_.astype(np.float64), axis=-1) + TINY).all()
        return
    top = np.abs(given_).max(axis=_unit(fmt), keepdims=True).astype(np.float64)
    assert (np.abs(got.astype(np.float64) - given_) <= fmt.error * top + TINY).all()


@pytest.mark.parametrize("name", NAMES)
def test_traits(name: str) -> None:
    fmt = _find.defaults("kvfmt", name)
    assert fmt.open in ("own", "float32", "bfloat16")
    assert fmt.group >= 0
    assert 0 <= fmt.error < 0.5 or fmt.error == 1  # what is left out is 0


@pytest.mark.parametrize("name", EXACT)
def test_open_dtype_error(name: str) -> None:
    fmt = _find.defaults("kvfmt", name)
    ops = Ops("float64")
    x = pages(0, dtype="float64")
    within(fmt, ops.cast(ops.to(x, fmt.open)), x)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_declared_error(name: str, dtype: str) -> None:
    fmt = _find.defaults("kvfmt", name)
    for seed in range(20):
        k, v = pages(seed, dtype=dtype), pages(seed + 100, dtype=dtype)
        got_k, got_v = trip(fmt, k, v, Ops(dtype))
        within(fmt, got_k, k)
        within(fmt, got_v, v)


@pytest.mark.parametrize("name", PACKED)
@given(st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=DIM, max_size=DIM))
@settings(max_examples=200, deadline=None)
def test_declared_error_of_any_row(name: str, row: list[float]) -> None:
    fmt = _find.defaults("kvfmt", name)
    x = np.zeros((1, PAGE, DIM), np.float32)
    x[0, 3] = row
    for got in trip(fmt, x, x, Ops("float32")):
        assert np.isfinite(got).all()
        within(fmt, got, x)
        assert fmt.group > 1 or (got[0, 4:] == 0).all(), "zero rows stay zero"


@pytest.mark.parametrize("name", PACKED)
def test_error_is_not_declared_too_large(name: str) -> None:
    """Some value comes near the bound; otherwise the bound says nothing."""
    fmt = _find.defaults("kvfmt", name)
    k = pages(1, 200)
    got, _ = trip(fmt, k, k, Ops("float32"))
    if getattr(fmt, "unit", "") == "length":
        length = np.linalg.norm(k, axis=-1)
        off = np.linalg.norm(got - k, axis=-1) / np.where(length > 0, length, 1)
        assert off.max() > 0.5 * fmt.error
        return
    top = np.abs(k).max(axis=_unit(fmt), keepdims=True)
    assert (np.abs(got - k) / np.where(top > 0, top, 1)).max() > 0.5 * fmt.error


@pytest.mark.parametrize("name", PACKED)
def test_pages_are_packed_one_by_one(name: str) -> None:
    fmt, ops = _find.defaults("kvfmt", name), Ops("float32")
    k, v = pages(2), pages(3)
    together = fmt.pack(k, v, ops)
    for i in range(len(k)):
        alone = fmt.pack(k[i : i + 1], v[i : i + 1], ops)
        for field in together:
            assert (alone[field][0] == together[field][i]).all()


@pytest.mark.parametrize("name", PACKED)
def test_no_pages_are_no_pages(name: str) -> None:
    fmt, ops = _find.defaults("kvfmt", name), Ops("float32")
    none = fmt.pack(pages(0)[:0], pages(0)[:0], ops)
    assert all(none[f.name].shape == (0, *f.shape) for f in fmt.fields(PAGE, DIM))
    assert [a.shape for a in fmt.unpack(none, DIM, ops)] == [(0, PAGE, DIM)] * 2


@pytest.mark.parametrize("name", PACKED)
def test_fields_are_as_declared(name: str) -> None:
    fmt, ops = _find.defaults("kvfmt", name), Ops("float32")
    packed = fmt.pack(pages(2), pages(3), ops)
    fields = fmt.fields(PAGE, DIM)
    assert set(packed) == {f.name for f in fields}
    for f in fields:
        assert packed[f.name].shape == (5, *f.shape)
        assert packed[f.name].dtype == ops.dtype_of(f.dtype)
        assert f.rows == -1 or f.shape[f.rows] == PAGE


@pytest.mark.parametrize("name", PACKED)
def test_packing_again_changes_nothing(name: str) -> None:
    """A page is unpacked and packed again when rows join it."""
    fmt, ops = _find.defaults("kvfmt", name), Ops("float32")
    if fmt.group > 1:
        pytest.skip("its pages are never reopened")
    for seed in range(20):
        once = fmt.pack(pages(seed), pages(seed + 50), ops)
        again = fmt.pack(*fmt.unpack(once, DIM, ops), ops)
        for field in once:
            assert (once[field] == again[field]).all(), field


@pytest.mark.parametrize("name", PACKED)
def test_rows_with_group_one_stand_alone(name: str) -> None:
    """Rows of such a format may be copied as they are packed: a field's row axis holds all of a row."""
    fmt, ops = _find.defaults("kvfmt", name), Ops("float32")
    if fmt.group > 1:
        pytest.skip("its rows are packed together")
    k, v = pages(4), pages(5)
    order = np.random.default_rng(0).permutation(PAGE)
    a, b = fmt.pack(k, v, ops), fmt.pack(k[:, order], v[:, order], ops)
    for f in fmt.fields(PAGE, DIM):
        assert f.rows >= 0
        assert (np.take(a[f.name], order, axis=f.rows + 1) == b[f.name]).all()


@pytest.mark.parametrize("name", PACKED)
def test_torch_packs_the_same_bytes(name: str) -> None:
    torch = pytest.importorskip("torch")
    fmt = _find.defaults("kvfmt", name)
    a = fmt.pack(pages(6), pages(7), Ops("float32"))
    ops = Ops("float32", torch)
    b = fmt.pack(ops.array(pages(6)), ops.array(pages(7)), ops)
    for f in fmt.fields(PAGE, DIM):
        wide = "float32" if f.dtype == "bfloat16" else f.dtype  # which NumPy does not take from torch
        assert (a[f.name].astype(wide) == ops.numpy(ops.to(b[f.name], wide))).all()
    for x, y in zip(fmt.unpack(a, DIM, Ops("float32")), fmt.unpack(b, DIM, ops), strict=True):
        assert (x == ops.numpy(y)).all()


@pytest.mark.parametrize("name", NAMES)
def test_through_the_store(name: str) -> None:
    """What the store gives back after sealing is within the declared error of what ran, twice."""
    fmt = _find.defaults("kvfmt", name)
    ids = np.random.default_rng(1).integers(0, N_VOCAB, 50).tolist()
    run, plain = Small(small(), None, fmt), Small(small())
    for part in (slice(0, 37), slice(37, 50)):  # the second seal reopens a page
        logits = run.feed(ids[part], 50)
        want = plain.feed(ids[part], 50)
        if part.start == 0 and fmt.group:
            assert np.abs(logits - want).max() < 1e-9, "nothing is packed before the first barrier"
        run.store.seal(run.kv)
    plain.store.seal(plain.kv)
    got, exact = run.store.view(run.kv, 50), plain.store.view(plain.kv, 50)
    within(fmt, got.k[0], exact.k[0])  # the first layer's rows do not depend on attention
    within(fmt, got.v[0], exact.v[0])
    if isinstance(fmt, Merging):
        return  # it merges layers that have nothing in common here: test_minicache
    # logits that had nothing to do with these would differ by some 4.5 times their spread somewhere
    assert np.abs(logits - want).max() < min(max(1.0, 100 * fmt.error), 3 * np.std(want))
    if fmt.open != "float32" or fmt.group:
        assert np.abs(logits - want).max() > 0, "the control: something was rounded"


@pytest.mark.parametrize("name", NAMES)
def test_bytes(name: str) -> None:
    """The arena holds what the fields add up to, and less than float32 does."""
    fmt = _find.defaults("kvfmt", name)
    dim = 64
    ops = Ops("float32")
    dtype = "float32" if fmt.open == "own" else fmt.open
    store = Store(ops, 2, 2, dim, dtype, fmt, Dense(), "seq", [None, None])
    kv = store.new()
    n = 40 * PAGE
    store.reserve(kv, n)
    store.extend(kv, np.arange(n, dtype=np.int32))
    store.seal(kv)
    assert store.open_arena.held == 0
    fields = fmt.fields(PAGE, dim) if fmt.group else exact_fields(dtype, dim)
    page = sum(-(-itemsize(f.dtype) * int(np.prod(f.shape)) // ALIGN) * ALIGN for f in fields)
    assert store.held == 40 * 2 * 2 * page
    exact = Layout.of(exact_fields("float32", dim), grouping("seq", 2, 2)).block * 40
    if fmt.group:
        in_codes = all(c.bits < 16 for c in fmt.codes) and not isinstance(fmt, Merging)
        least = 0.5 if isinstance(fmt, Merging) else 0.45  # no two of these layers merge
        assert store.held <= (0.3 if in_codes else least) * exact
    assert store.held <= exact
    store.free(kv)
    assert store.held == store.reserved == 0
