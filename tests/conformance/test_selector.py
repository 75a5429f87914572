"""Every selector: choosing all equals dense, its choice does not depend on the company of a row, and
what it bounds it bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE
from pronghorn.methods.kvfmt.int8 import Int8
from pronghorn.methods.select.quest import Quest
from pronghorn.ops.ref import Ops
from tests.conformance import _find
from tests.conformance._rig import N_VOCAB, Small, small

NAMES = _find.names("select")
DIM = 8
IDS = np.random.default_rng(2).integers(0, N_VOCAB, 150).tolist()


def keys(seed: int, n_pages: int = 9) -> Any:
    return np.random.default_rng(seed).standard_normal((n_pages, PAGE, DIM)).astype(np.float32)


def queries(seed: int, n: int = 6, g: int = 2) -> Any:
    return np.random.default_rng(seed + 1000).standard_normal((n, g, DIM)).astype(np.float32)


def stored(selector: Any, k: Any, valid: Any, ops: Ops) -> Any:
    index = selector.index(ops.array(k), ops.array(valid), ops)
    return {f.name: ops.to(index[f.name], f.dtype) for f in selector.fields(PAGE, DIM)}


ALL = np.ones((9, PAGE), bool)


def run(selector: Any, fmt: Any = None, ops: Ops | None = None) -> Any:
    s = Small(small(), None, fmt, selector, ops)
    s.seal_every = 32
    return s.feed(IDS, 100)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fmt", [None, Int8()], ids=["exact", "int8"])
def test_choosing_all_equals_dense(name: str, fmt: Any) -> None:
    got = run(_find.full("select", name), fmt)
    assert np.abs(got - run(None, fmt)).max() < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_choosing_few_shows(name: str) -> None:
    """The control of the test above."""
    assert np.abs(run(_find.tight("select", name)) - run(None)).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_index_is_as_declared_and_page_by_page(name: str) -> None:
    selector, ops = _find.tight("select", name), Ops("float32")
    assert not selector.dense
    index = selector.index(keys(0), ALL, ops)
    fields = selector.fields(PAGE, DIM)
    assert set(index) == {f.name for f in fields}
    for f in fields:
        assert index[f.name].shape == (9, *f.shape)
        for i in range(9):
            one = selector.index(keys(0)[i : i + 1], ALL[:1], ops)
            assert (one[f.name][0] == index[f.name][i]).all()


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_not_there_do_not_count(name: str) -> None:
    selector, ops = _find.tight("select", name), Ops("float32")
    valid = np.random.default_rng(3).random((9, PAGE)) < 0.6
    valid[:, 0] = True
    junk = np.where(valid[..., None], keys(1), np.float32(1e6))
    a, b = selector.index(keys(1), valid, ops), selector.index(junk, valid, ops)
    for field in a:
        assert np.isfinite(a[field]).all()
        assert (a[field] == b[field]).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_row_selects_for_itself(name: str) -> None:
    selector, ops = _find.tight("select", name), Ops("float32")
    index = stored(selector, keys(4), ALL, ops)
    q = queries(4, 12)
    together = selector.select(q, index, ops).pages
    assert together.shape == (12, 9)
    assert together.dtype == bool
    assert not together.all(), "the control: something is left out"
    for i in range(12):
        assert (selector.select(q[i : i + 1], index, ops).pages[0] == together[i]).all()


@pytest.mark.parametrize("name", NAMES)
def test_torch_selects_the_same_pages(name: str) -> None:
    torch = pytest.importorskip("torch")
    selector = _find.tight("select", name)
    host, ops = Ops("float32"), Ops("float32", torch)
    for seed in range(10):
        a = selector.select(queries(seed), stored(selector, keys(seed), ALL, host), host).pages
        b = selector.select(ops.array(queries(seed)), stored(selector, keys(seed), ALL, ops), ops).pages
        assert (a == ops.numpy(b)).all()


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_the_models(name: str) -> None:
    for selector in (_find.defaults("select", name), _find.tight("select", name)):
        for n in (1, 2, 12):
            assert set(selector.layers(n)) <= set(range(n))


# -------------------------------------------------------------------------------------- quest


@given(st.integers(0, 10**6), st.sampled_from(["float32", "float64"]), st.floats(1e-3, 1e3))
@settings(max_examples=150, deadline=None)
def test_quest_bounds_every_score(seed: int, dtype: str, size: float) -> None:
    ops = Ops(dtype)
    k, q = (keys(seed) * size).astype(dtype), queries(seed).astype(dtype)
    valid = np.random.default_rng(seed).random((9, PAGE)) < 0.7
    valid[:, 3] = True
    index = {n: ops.cast(a) for n, a in stored(Quest(), k, valid, ops).items()}
    bound = Quest().bound(q, index, ops)  # (n, pages)
    scores = np.einsum("ngd,prd->npgr", q.astype(np.float64), k.astype(np.float64))
    scores = np.where(valid[None, :, None], scores, -np.inf).max(axis=(2, 3))
    slack = 1e-5 * np.abs(q).sum(axis=(1, 2)).max() * np.abs(k).max()  # rounding of the sums
    assert (bound >= scores - slack).all()


def test_quest_bound_is_reached() -> None:
    """With one row to a page the bound is the score itself."""
    ops = Ops("float64")
    valid = np.zeros((9, PAGE), bool)
    valid[:, 5] = True
    k, q = keys(0).astype(np.float64), queries(0, g=1).astype(np.float64)
    bound = Quest().bound(q, Quest().index(k, valid, ops), ops)
    assert bound == pytest.approx(q[:, 0] @ k[:, 5].T)


def test_quest_reads_the_pages_of_the_largest_bounds() -> None:
    ops, quest = Ops("float64"), Quest(tokens=60)
    index = quest.index(keys(8).astype(np.float64), ALL, ops)
    q = queries(8).astype(np.float64)
    got = quest.select(q, index, ops).pages
    assert (got.sum(axis=1) == 4).all()  # 60 rows are 4 pages
    bound = quest.bound(q, index, ops)
    for i in range(len(q)):
        low = np.sort(bound[i])[-4]
        assert (bound[i, got[i]] >= low - np.abs(bound[i]).max() / 2000).all()


def test_quest_ties_go_to_the_earlier_page() -> None:
    ops = Ops("float32")
    k = np.repeat(keys(0, 1), 9, axis=0)
    got = Quest(tokens=64).select(queries(0), stored(Quest(), k, ALL, ops), ops).pages
    assert (got == (np.arange(9) < 4)).all()


def test_quest_reads_three_pages_at_least_and_all_when_they_fit() -> None:
    ops = Ops("float32")
    index = stored(Quest(), keys(0), ALL, ops)
    assert (Quest(tokens=1).select(queries(0), index, ops).pages.sum(axis=1) == 3).all()
    assert Quest(tokens=9 * PAGE).select(queries(0), index, ops).pages.all()
    assert list(Quest().layers(4)) == [2, 3]


@pytest.mark.parametrize("bad", [{"tokens": 0}, {"dense_layers": -1}])
def test_quest_ranges(bad: dict[str, int]) -> None:
    with pytest.raises(MethodError, match=next(iter(bad))):
        Quest(**bad)
