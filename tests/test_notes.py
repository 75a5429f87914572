"""Notes, rewritten rows and what is added to scores: they go where their rows go."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from pronghorn.kv.image import ImageError, digest, dump, load, start
from pronghorn.kv.store import SeqKV, Store
from pronghorn.kv.tiers import Swap
from pronghorn.methods.kvfmt.int8 import Int8
from pronghorn.ops.cpu import _native
from pronghorn.ops.ref import Ops
from pronghorn.run.native import NativeRunner
from pronghorn.run.ref import RefRunner
from pronghorn.types import BIAS, KVPlan, Rewrite
from tests.native_tapes import Chunk, Driver, Model, build, store_for, tokens
from tests.states import HEADS, KINDS, LAYERS, grow, image, make, text

MARK = digest(b"a model")


def numbers(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(LAYERS, HEADS, n)).astype(np.float32)


def noted(store: Store, n: int = 50) -> SeqKV:
    """n rows, all sealed, with two notes of each."""
    kv = store.new()
    grow(kv, text(1, n))
    store.seal(kv, KVPlan(notes={"a": numbers(n), "b": numbers(n, 1)}))
    return kv


def note(kv: SeqKV, name: str = "a") -> Any:
    return kv.store.view(kv, 0).note(name)


@pytest.mark.parametrize("kind", KINDS)
def test_notes_follow_their_rows(kind: str) -> None:
    store = make(kind)
    kv = store.new()
    assert (note(kv) == 0).all()
    grow(kv, text(1, 30))
    store.seal(kv, KVPlan(notes={"a": numbers(30)}))
    assert (note(kv) == numbers(30)).all()
    grow(kv, text(1, 50))
    want = np.concatenate([numbers(30), np.zeros((LAYERS, HEADS, 20))], axis=2)
    assert (note(kv) == want).all(), "new rows have none"
    groups = store.sealed_layout.groups
    keep = {
        g: np.sort(np.random.default_rng(g).permutation(50)[:20]).astype(np.int32) for g in range(len(groups))
    }
    store.seal(kv, KVPlan(dict(keep), notes={"b": numbers(50, 2)}))
    for (layer, head), (g, _) in store.group_of.items():
        assert (note(kv)[layer, head] == want[layer, head, keep[g]]).all()
        assert (note(kv, "b")[layer, head] == numbers(50, 2)[layer, head, keep[g]]).all()
    store.seal(kv)
    assert (note(kv, "b")[0, 0] == numbers(50, 2)[0, 0, keep[0]]).all()
    store.free(kv)
    assert (note(kv) == 0).all()


def test_a_fork_has_its_own() -> None:
    store = make("heads")
    kv = noted(store)
    fork = store.fork(kv)
    store.seal(kv, KVPlan({0: np.arange(5, dtype=np.int32)}, notes={"a": numbers(50, 7)}))
    assert (note(fork) == numbers(50)).all()
    assert (note(kv)[0, 0, :5] == numbers(50, 7)[0, 0, :5]).all()
    store.cut(fork, 32)
    assert (note(fork) == numbers(50)[..., :32]).all()


def test_they_are_counted() -> None:
    store = make()
    kv = store.new()
    grow(kv, text(1, 50))
    store.seal(kv)
    bare = store.bytes_of(kv)
    assert store.bytes_of(noted(store)) == bare + 2 * 50 * LAYERS * HEADS * 4


@pytest.mark.parametrize("folder", [True, False])
def test_they_are_swapped(folder: bool, tmp_path: Any) -> None:
    store = make("heads")
    swap = Swap(store, str(tmp_path) if folder else "")
    kv = noted(store)
    grow(kv, text(1, 60))
    before, rows = [note(kv, name).copy() for name in "ab"], image(kv)
    ticket = swap.out(kv)
    swap.settle(block=True)
    assert store.held == 0
    back = swap.back(ticket)
    assert image(back) == rows
    assert all((note(back, name) == x).all() for name, x in zip("ab", before, strict=True))
    swap.close()


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_in_an_image(kind: str) -> None:
    store = make(kind)
    kv = noted(store)
    grow(kv, text(1, 60))
    data = b"".join(bytes(p) for p in dump(kv, MARK))
    back = load(store, MARK, data)
    assert image(back) == image(kv)
    assert all((note(back, name) == note(kv, name)).all() for name in "ab")
    with pytest.raises(ImageError):
        start(kv, 32)  # a part would not have them all
    for at in range(len(data) - store.sealed_layout.block, 0, -97):
        spoiled = data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]
        with pytest.raises(ImageError):
            load(store, MARK, spoiled)


# ------------------------------------------------------------------------------- rewritten rows


@pytest.mark.parametrize(("kind", "moves", "n_open"), list(itertools.product(KINDS, [False, True], [0, 20])))
def test_rewritten_rows_have_their_new_values(kind: str, moves: bool, n_open: int) -> None:
    store = make(kind)
    kv = store.new()
    n = 50
    grow(kv, text(1, n - n_open))
    store.seal(kv)
    grow(kv, text(1, n))
    fork = store.fork(kv)
    before = image(fork)
    keep = np.arange(1, n, 2, dtype=np.int32)
    rows = np.array([3, 17, 31, 41, 49], np.int32)
    view = store.view(kv, 0)
    k, v = view.k[:, :, keep].copy(), view.v[:, :, keep].copy()
    values = {}
    rng = np.random.default_rng(0)
    at = np.searchsorted(keep, rows)
    for g, members in enumerate(store.sealed_layout.groups):
        new = rng.normal(size=(2, len(rows), len(members), store.head_dim)).astype(np.float32)
        values[g] = Rewrite(rows, new[0], new[1])
        for i, (layer, head) in enumerate(members):
            k[layer, head, at], v[layer, head, at] = new[0][:, i], new[1][:, i]
    store.seal(kv, KVPlan(dict.fromkeys(values, keep), values), moves)
    view = store.view(kv, 0)
    if "merged" in kind:  # rows of two layers that have nothing in common: `distinct` of a page remain
        same = np.abs(view.k - k).max(axis=3) <= 0.01 * np.abs(k).max()
        assert store.n_layers == 2 and (same.sum(axis=2) >= -(-len(keep) // 16)).all()
        lengths = np.linalg.norm(view.k, axis=3), np.linalg.norm(k, axis=3)
        assert np.abs(lengths[0] - lengths[1]).max() <= 0.01 * lengths[1].max()
        k, v = view.k, view.v
    tolerance = 0.02 if "int8" in kind else 0.01 if kind == "bf16" else 0
    assert np.abs(view.k - k).max() <= tolerance * np.abs(k).max()
    assert np.abs(view.v - v).max() <= tolerance * np.abs(v).max()
    assert kv.dropped and not fork.dropped
    assert image(fork) == before, "pages are copied before they are written to"
    store.free(kv)
    store.free(fork)
    assert store.held == 0


def test_rewriting_alone_drops_nothing() -> None:
    store = make()
    kv = noted(store)
    zeros = np.zeros((1, LAYERS * HEADS, store.head_dim))
    store.seal(kv, KVPlan(values={0: Rewrite(np.array([7], np.int32), zeros, zeros)}))
    view = store.view(kv, 0)
    assert view.n == 50
    assert (view.k[:, :, 7] == 0).all()
    assert (np.abs(view.k).sum(axis=-1) > 0).sum() == 49 * LAYERS * HEADS
    assert kv.dropped, "nobody else may have such rows"


def test_a_row_that_goes_is_not_rewritten() -> None:
    store = make()
    kv = noted(store)
    zeros = np.zeros((1, LAYERS * HEADS, store.head_dim))
    plan = KVPlan({0: np.array([1, 3], np.int32)}, {0: Rewrite(np.array([2], np.int32), zeros, zeros)})
    with pytest.raises(ValueError, match="does not keep"):
        store.seal(kv, plan)


# ------------------------------------------------------------------------------- added to scores

STORES: dict[str, dict[str, Any]] = {
    "fp32": {}, "bf16": {"kv": "bfloat16"}, "int8": {"fmt": Int8(), "kv": "float32"},
}  # fmt: skip


def biased(d: Driver, m: Model, by: float) -> None:
    """Of the first sequence, whose heads keep other rows each."""
    kv = d.kvs[0]
    bias = by * np.random.default_rng(1).normal(size=(m.layers, m.n_kv, kv.n_rows))
    keep = {g: np.arange(g % 2, s.n + kv.n_open, 2, dtype=np.int32) for g, s in enumerate(kv.sealed)}
    d.runner.store.seal(kv, KVPlan(keep, notes={BIAS: bias}))


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("model", [Model(), Model(softcap=3.0, scale=2.5), Model(layers=3, window=37)])
def test_both_runners_add_it(model: Model, store: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    bound = build(model)
    options = {**STORES[store], "rows": "head"}
    ref = Driver(RefRunner(bound, store_for(bound, Ops("float64"), **options)), 2)
    native = Driver(NativeRunner(bound, store_for(bound, Ops("float32"), **options), threads=2), 2)
    plain = Driver(NativeRunner(bound, store_for(bound, Ops("float32"), **options), threads=2), 2)
    tolerance = {"fp32": 3e-5, "bf16": 0.05, "int8": 0.03}[store]
    for step in range(3):
        chunks = [Chunk(0, tokens(70, seed=step)), Chunk(1, tokens(5, seed=9 + step))]
        logits = [d.step(chunks) for d in (ref, native, plain)]
        for a, b in zip(logits[0], logits[1], strict=True):
            assert np.abs(a - b).max() < tolerance
        if step:
            assert np.abs(logits[1][0] - logits[2][0]).max() > 0.1
            assert np.abs(logits[1][1] - logits[2][1]).max() == 0, "only the rows that have it"
        if step < 2:
            for d in (ref, native):
                biased(d, model, 2.0)
            biased(plain, model, 0.0)


def test_a_row_counts_as_many_as_its_bias_says() -> None:
    """log 3 on one of equal rows is three of them."""
    m = Model(layers=1)
    bound = build(m)
    out = []
    for copies in (1, 3):
        d = Driver(NativeRunner(bound, store_for(bound, Ops("float32")), threads=1), 1)
        store, kv = d.runner.store, d.kvs[0]
        d.step([Chunk(0, tokens(20))])
        view = store.view(kv, 0)
        k, v = (np.stack([a[0, :, 4]] * copies) for a in (view.k, view.v))
        rows = np.arange(4, 4 + copies, dtype=np.int32)
        keep = np.r_[rows, 10:20].astype(np.int32)
        note = np.zeros((1, m.n_kv, 20))
        note[0, :, 4] = np.log(3) if copies == 1 else 0
        store.seal(kv, KVPlan({0: keep}, {0: Rewrite(rows, k, v)}, {BIAS: note}))
        out.append(d.step([Chunk(0, tokens(3, seed=5))])[0])
    assert np.abs(out[0] - out[1]).max() < 1e-5


def test_who_shares_pages_but_not_what_is_added_reads_them_alone() -> None:
    m = Model(layers=2)
    bound = build(m)
    d = Driver(NativeRunner(bound, store_for(bound, Ops("float32")), threads=2), 3)
    store = d.runner.store
    d.step([Chunk(0, tokens(600))])
    store.seal(d.kvs[0])
    d.kvs[1], d.kvs[2] = store.fork(d.kvs[0]), store.fork(d.kvs[0])
    note = np.random.default_rng(0).normal(size=(2, m.n_kv, 600))
    store.seal(d.kvs[1], KVPlan(notes={BIAS: note}))
    assert (d.kvs[1].sealed[0].blocks == d.kvs[0].sealed[0].blocks).all()
    steps = [Chunk(i, tokens(2, seed=3), commit=[]) for i in range(3)]
    together = d.step(steps)
    alone = [d.step([c])[0] for c in steps]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    assert np.array_equal(together[0], together[2])
    assert np.abs(together[0] - together[1]).max() > 0.01
