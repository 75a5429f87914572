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
from pronghorn.methods.select import _pages
from pronghorn.methods.select.double_sparsity import DoubleSparsity
from pronghorn.methods.select.lserve import LServe
from pronghorn.methods.select.quest import Quest
from pronghorn.methods.select.sentence_kv import SentenceKV
from pronghorn.methods.select.squeezed import Squeezed
from pronghorn.methods.select.tidal import Tidal
from pronghorn.ops.ref import Ops
from pronghorn.types import Choice
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
    """What `select` is shown."""
    k, valid = ops.cast(ops.array(k)), ops.array(valid)
    index = selector.index(k, valid, ops)
    out = {f.name: ops.cast(ops.to(index[f.name], f.dtype)) for f in selector.fields(PAGE, DIM)}
    return out | ({"k": k, "valid": valid} if selector.choice.score == "keys" else {})


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
    assert (together.sum(axis=1) <= selector.choice.pages).all()
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
def test_sources_are_layers_that_choose(name: str) -> None:
    for selector in (_find.defaults("select", name), _find.tight("select", name)):
        for n in (1, 2, 12, 30):
            sources = list(selector.sources(n))
            assert len(sources) == n
            last = -1
            for i, source in enumerate(sources):
                last = i if i in sources else last
                assert source in (-1, last)


@pytest.mark.parametrize("name", NAMES)
def test_ties_go_to_the_earlier_page(name: str) -> None:
    selector, ops = _find.tight("select", name), Ops("float32")
    k = np.repeat(keys(0, 1), 9, axis=0)
    c = selector.choice
    got = selector.select(queries(0), stored(selector, k, ALL, ops), ops).pages
    best = np.arange(9) < c.pages - c.last * c.span
    assert (got == (best | (np.arange(9) // c.span >= -(-9 // c.span) - c.last))).all()


@pytest.mark.parametrize("name", NAMES)
def test_ranges(name: str) -> None:
    cls = _find.classes("select")[name]
    for bad in ({"tokens": 0}, {"dense_layers": -1}, {"channels": 0}, {"codes": 0}, {"parts": 0},
                {"centroids": 0}, {"centroids": 17}, {"choosing": ()}, {"choosing": (3, 2)}, {"start": -1},
                {"recent": -1}, {"keys": 0}, {"keys": 17},
                {"density": 0.0}, {"density": 1.5}):  # fmt: skip
        if set(bad) <= set(cls.__dataclass_fields__):
            with pytest.raises(MethodError, match=next(iter(bad))):
                cls(**bad)


# ------------------------------------------------------------------------------------ choices


def choose(c: Choice, score: Any) -> Any:
    return _pages.chosen(c, np.asarray(score, np.float64)[None], Ops()).tolist()[0]


def test_what_a_choice_means() -> None:
    one = [[0.0, 3.0, 1.0, 2.0, -1.0]]
    assert choose(Choice(pages=2), one) == [False, True, False, True, False]
    assert choose(Choice(pages=2, first=1), one) == [True, True, False, False, False]
    assert choose(Choice(pages=3, first=1, last=1), one) == [True, True, False, False, True]
    assert choose(Choice(pages=2, span=2), one) == [True, True, False, False, False]
    assert choose(Choice(pages=5), one) == [True] * 5
    two = [[9.0, 5.0, 0.0], [-9.0, 5.0, 0.0]]
    assert choose(Choice(pages=1), two) == [True, False, False]
    assert choose(Choice(pages=1, heads="sum"), two) == [False, True, False]
    votes = [[0.0, 0.0, 9.0], *[[0.0, 2.5, 0.0]] * 3]
    assert choose(Choice(pages=1, heads="sum"), votes) == [False, False, True]
    assert choose(Choice(pages=1, heads="vote"), votes) == [False, True, False]
    sums = [[5.0, 1.0, 3.0, 1.0]]
    assert choose(Choice(pages=3, heads="sum", cover=0.5), sums) == [True, False, False, False]
    assert choose(Choice(pages=3, heads="sum", cover=0.51), sums) == [True, False, True, False]
    assert choose(Choice(pages=3, heads="sum", cover=0.9), sums) == [True, True, True, False]
    assert choose(Choice(pages=3, heads="sum", last=1, cover=0.1), sums) == [False, False, False, True]


# -------------------------------------------------------------------------------------- quest


@given(st.integers(0, 10**6), st.sampled_from(["float32", "float64"]), st.floats(1e-3, 1e3))
@settings(max_examples=150, deadline=None)
def test_quest_bounds_every_score(seed: int, dtype: str, size: float) -> None:
    ops = Ops(dtype)
    k, q = (keys(seed) * size).astype(dtype), queries(seed).astype(dtype)
    valid = np.random.default_rng(seed).random((9, PAGE)) < 0.7
    valid[:, 3] = True
    bound = _pages.scores("bounds", q, stored(Quest(), k, valid, ops), ops)  # (n, g, pages)
    scores = np.einsum("ngd,prd->ngpr", q.astype(np.float64), k.astype(np.float64))
    scores = np.where(valid, scores, -np.inf).max(axis=3)
    slack = 1e-5 * np.abs(q).sum(axis=(1, 2)).max() * np.abs(k).max()  # rounding of the sums
    assert (bound >= scores - slack).all()


def test_quest_bounds_are_tight() -> None:
    """With one row to a page the bound is the score itself, but for bfloat16."""
    ops = Ops("float64")
    valid = np.zeros((9, PAGE), bool)
    valid[:, 5] = True
    k, q = keys(0).astype(np.float64), queries(0, g=1).astype(np.float64)
    bound = _pages.scores("bounds", q, stored(Quest(), k, valid, ops), ops)[:, 0]
    size = np.abs(q[:, 0]) @ np.abs(k[:, 5]).T
    assert (np.abs(bound - q[:, 0] @ k[:, 5].T) <= size / 64).all()


def test_quest_reads_the_pages_of_the_largest_bounds() -> None:
    ops, quest = Ops("float64"), Quest(tokens=60)
    index = stored(quest, keys(8), ALL, ops)
    q = queries(8).astype(np.float64)
    got = quest.select(q, index, ops).pages
    assert (got.sum(axis=1) == 4).all()  # 60 rows are 4 pages
    bound = _pages.scores("bounds", q, index, ops).max(axis=1)
    for i in range(len(q)):
        low = np.sort(bound[i])[-4]
        assert (bound[i, got[i]] >= low - np.abs(bound[i]).max() / 2000).all()


def test_quest_reads_three_pages_at_least_and_all_when_they_fit() -> None:
    ops = Ops("float32")
    index = stored(Quest(), keys(0), ALL, ops)
    assert (Quest(tokens=1).select(queries(0), index, ops).pages.sum(axis=1) == 3).all()
    assert Quest(tokens=9 * PAGE).select(queries(0), index, ops).pages.all()
    assert list(Quest().sources(4)) == [-1, -1, 2, 3]


def test_lserve_of_one_part_is_quest() -> None:
    ops = Ops("float32")
    for seed in range(5):
        index = stored(Quest(), keys(seed), ALL, ops)
        a = LServe(tokens=64, parts=1).select(queries(seed), index, ops).pages
        assert (a == Quest(tokens=64).select(queries(seed), index, ops).pages).all()
    four = LServe(tokens=64).select(
        queries(0), stored(LServe(), keys(0, 12), np.ones((12, PAGE), bool), ops), ops
    )
    assert (four.pages.reshape(6, 3, 4).sum(axis=(1, 2)) == 4).all()
    assert set(four.pages.reshape(6, 3, 4).sum(axis=2).ravel()) == {0, 4}  # runs are read whole


# --------------------------------------------------------------------------- what labels find


def heavy(seed: int, dim: int = 64, n_pages: int = 60) -> tuple[Any, Any]:
    """Keys some of whose channels are large, as those of trained models are, and queries."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.standard_normal(dim))
    k = (rng.standard_normal((n_pages, PAGE, dim)) * size).astype(np.float32)
    return k, rng.standard_normal((8, 1, dim)).astype(np.float32)


def test_double_sparsity_finds_the_largest_scores() -> None:
    """The card's check: of the best 16 rows, 9 in 10 lie in pages that a quarter of the channels find."""
    ops, selector = Ops("float32"), DoubleSparsity(tokens=512, channels=16)
    found = []
    for seed in range(4):
        k, q = heavy(seed)
        valid = np.ones(k.shape[:2], bool)
        index = {n: ops.cast(ops.to(a, f.dtype)) for f in selector.fields(PAGE, 64)
                 for n, a in selector.index(k, valid, ops).items() if n == f.name}  # fmt: skip
        pages = selector.select(q, index, ops).pages
        score = np.einsum("ngd,prd->npr", q, k).reshape(8, -1)
        best = np.argsort(-score, axis=1)[:, :16] // PAGE
        found.append(np.take_along_axis(pages, best, axis=1).mean())
    assert np.mean(found) >= 0.9


def test_labels_of_all_channels_are_the_keys() -> None:
    ops, every = Ops("float64"), DoubleSparsity(tokens=48, channels=DIM)
    k, q = keys(5).astype(np.float64), queries(5).astype(np.float64)
    got = _pages.scores("labels", q, stored(every, k, ALL, ops), ops)
    exact = _pages.scores("keys", q, {"k": k, "valid": ALL}, ops)
    assert np.abs(got - exact).max() < 0.05 * np.abs(exact).max()


def test_sentence_kv_keeps_means() -> None:
    ops = Ops("float64")
    valid = np.random.default_rng(1).random((9, PAGE)) < 0.5
    valid[:, 2] = True
    k = keys(1).astype(np.float64)
    mean = SentenceKV().index(k, valid, ops)["mean"]
    for i in range(9):
        assert mean[i, 0] == pytest.approx(k[i, valid[i]].mean(axis=0))


def test_squeezed_finds_clusters() -> None:
    """Keys around two directions: the centroids are the means of each."""
    rng = np.random.default_rng(0)
    ops = Ops("float64")
    centres = rng.standard_normal((5, 2, DIM)) * 3
    which = np.arange(PAGE) % 2
    k = centres[:, which] + 0.05 * rng.standard_normal((5, PAGE, DIM))
    mean = Squeezed(centroids=2).index(k, np.ones((5, PAGE), bool), ops)["mean"]
    for i in range(5):
        wanted = [k[i, which == c].mean(axis=0) for c in (0, 1)]
        assert all(min(np.abs(m - w).max() for w in wanted) < 1e-9 for m in mean[i])


def test_tidal_layers_read_by_the_last_choice() -> None:
    assert list(Tidal().sources(16)) == [-1, -1, -1, *[2] * 10, -1, 13, 13]
    assert list(Tidal(choosing=(0,)).sources(3)) == [-1, 0, 0]
