"""Sequences that hold the same pages read them together, and get the same bits as alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pronghorn.kv.store import SeqKV, Store
from pronghorn.methods.kvfmt.int8 import Int8 as Int8KV
from pronghorn.methods.select.quest import Quest
from pronghorn.ops.cpu import _native
from pronghorn.ops.ref import Ops
from pronghorn.run.native import NativeRunner
from pronghorn.types import KVPlan
from tests.native_tapes import Chunk, Driver, Model, build, store_for, tokens

MODELS = {
    "gqa": Model(layers=1, heads=6, n_kv=2, dim=32, hidden=16),
    "window": Model(layers=2, heads=3, n_kv=1, dim=20, hidden=16, window=300, softcap=8.0),
    "mha": Model(layers=2, heads=3, n_kv=3, dim=16, width=37, hidden=19, head_norm=True),
}
STORES = {
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "int8": ("bfloat16", Int8KV()),
    "float32-int8": ("float32", Int8KV()),
}
BLOCK = 256  # keys that are shared or not


def driver(name: str, store: str = "float32", threads: int = 2, **more: Any) -> Driver:
    kv, fmt = STORES[store]
    m = dataclasses.replace(MODELS[name], dtype="bfloat16" if kv == "bfloat16" else "float32")
    bound = build(m)
    return Driver(NativeRunner(bound, store_for(bound, Ops("float32"), kv, fmt, **more), threads), 1)


def apart(store: Store, kv: SeqKV) -> SeqKV:
    """The same rows in pages of its own."""
    new = store.fork(kv)
    held = [(new.open, store.open_arena), *((s.blocks, store.sealed_arena) for s in new.sealed)]
    for blocks, arena in held:
        for i, b in enumerate(blocks):
            blocks[i] = arena.copy(int(b))
    new.open_addr = store.open_arena.address(new.open)
    for s in new.sealed:
        s.addr = store.sealed_arena.address(s.blocks)
    store._point(new)
    return new


class Both:
    """The same sequences in two runners: one runs those of a step together, with the pages that they share;
    the other runs each alone, in pages of its own, on one thread."""

    def __init__(self, make: Callable[[int], Driver], threads: int) -> None:
        self.together, self.alone = make(threads), make(1)
        self.saved = 0  # bytes that were not read thanks to sharing

    def fork(self, seq: int) -> int:
        store = self.together.runner.store
        self.together.kvs.append(store.fork(self.together.kvs[seq]))
        self.alone.kvs.append(apart(self.alone.runner.store, self.alone.kvs[seq]))
        return len(self.alone.kvs) - 1

    def seal(self, seq: int, plan: KVPlan | None = None) -> None:
        for d in (self.together, self.alone):
            d.runner.store.seal(d.kvs[seq], plan)

    def step(self, *chunks: Chunk) -> None:
        got = self.together.step(list(chunks))
        read = self.together.runner.read_bytes
        for c, logits in zip(chunks, got, strict=True):
            assert np.isfinite(logits).all()
            assert np.array_equal(self.alone.step([c])[0], logits), c
            self.saved += self.alone.runner.read_bytes
        self.saved -= read


def drafts(seq: int, seed: int, n: int = 6) -> Chunk:
    """A small tree of drafts, a path of which is right."""
    rng = np.random.default_rng(seed)
    parent = [int(rng.integers(max(-1, i - 3), i)) for i in range(n)]
    path = [n - 1]
    while parent[path[0]] >= 0:
        path.insert(0, parent[path[0]])
    return Chunk(seq, tokens(n, seed=seed), parent, path)


def grow(b: Both, sealed: bool) -> None:
    """Two levels of shared prefixes: 0 to 2 share 785 tokens, 3 and 4 share 1,060, all of them 560."""
    b.step(Chunk(0, tokens(560)))
    if sealed:  # a block then begins sealed and ends open
        b.seal(0)
    first = b.fork(0)
    b.step(Chunk(0, tokens(225, seed=2)), Chunk(first, tokens(500, seed=3)))
    for of in (0, 0, first):
        b.fork(of)
    for d in (b.together, b.alone):
        d.kvs.append(d.kvs.pop(first))  # beside the one that shares with it


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("name", MODELS)
def test_the_same_bits_as_alone(name, store, isa, monkeypatch):
    """Answers, drafts and a prompt's chunk in one step, above two levels of shared prefixes."""
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    threads = 1 + (len(name) + len(store)) % 3
    b = Both(lambda n: driver(name, store, n), threads)
    grow(b, sealed=store != "bfloat16")
    b.step(*(Chunk(i, tokens(1, seed=i)) for i in range(5)))
    b.step(drafts(0, 5), Chunk(1, [7]), Chunk(2, tokens(90, seed=6)), drafts(3, 7, 9), Chunk(4, [8, 9]))
    b.step(*(Chunk(i, [i]) for i in range(5)))
    assert b.saved > 0


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("order", [(4, 1, 3, 0, 2), (0, 3, 1, 4, 2), (2, 1, 0, 4, 3)])
def test_in_any_order(order, threads):
    b = Both(lambda n: driver("gqa", "bfloat16", n), threads)
    grow(b, sealed=False)
    for seed in range(3):
        b.step(*(Chunk(i, tokens(1 + (i + seed) % 3, seed=i)) for i in order))
    assert b.saved > 0


@pytest.mark.parametrize("store", ["float32", "int8"])
@pytest.mark.parametrize("n", [40, 150])
def test_more_rows_than_an_item_holds(n, store):
    b = Both(lambda n: driver("gqa", store, n), 2)
    b.step(Chunk(0, tokens(2 * BLOCK + 20)))
    b.seal(0)
    for _ in range(n - 1):
        b.fork(0)
    b.step(*(Chunk(i, tokens(1 + i % 3, seed=i)) for i in range(n)))
    assert b.saved > 0


def test_groups_that_keep_different_rows():
    """Heads with sealed rows of their own: what is common is common to all of them."""
    b = Both(lambda n: driver("gqa", "int8", n, rows="head"), 2)
    b.step(Chunk(0, tokens(900)))
    n = 900
    keep = {0: np.arange(0, n, 2, dtype=np.int32), 1: np.arange(0, n - 60, dtype=np.int32)}
    b.seal(0, KVPlan(keep))
    b.step(Chunk(0, tokens(300, seed=2)))
    for _ in range(3):
        b.fork(0)
    b.step(*(Chunk(i, [i]) for i in range(4)))
    assert b.saved > 0
    b.seal(2, KVPlan({0: np.arange(5, 400, dtype=np.int32)}))
    b.step(*(Chunk(i, [i]) for i in range(4)))


def test_a_selector_reads_for_each_sequence():
    """Picks are a sequence's own: nothing is shared."""
    b = Both(lambda n: driver("gqa", "float32", n, selector=Quest(tokens=64, dense_layers=0)), 2)
    b.step(Chunk(0, tokens(800)))
    b.seal(0)
    for _ in range(3):
        b.fork(0)
    b.step(*(Chunk(i, tokens(2, seed=i)) for i in range(4)))
    assert b.saved == 0


def other_open_positions(store: Store, kv: SeqKV) -> None:
    kv.open_pos += 200
    kv.next_pos += 200


def other_sealed_positions(store: Store, kv: SeqKV) -> None:
    kv.sealed[0].pos += 200


def less_of_a_page(store: Store, kv: SeqKV) -> None:
    kv.sealed[0].fill[3] = 9


def a_page_less(store: Store, kv: SeqKV) -> None:
    """Open pages are the same then, under other numbers."""
    s = kv.sealed[0]
    s.blocks, s.addr, s.fill, s.pos = s.blocks[:-1], s.addr[:-1], s.fill[:-1], s.pos[:-16]
    store._point(kv)


@pytest.mark.parametrize(
    "change", [other_open_positions, other_sealed_positions, less_of_a_page, a_page_less]
)
def test_the_same_pages_that_mean_something_else_are_not_shared(change):
    """A window looks at positions, which belong to the sequence, as do the rows of a page that count."""
    d = driver("window")
    d.step([Chunk(0, tokens(300))])
    if change is not other_open_positions:
        d.runner.store.seal(d.kvs[0])
    d.step([Chunk(0, tokens(300, seed=2))])
    d.kvs.append(d.runner.store.fork(d.kvs[0]))
    change(d.runner.store, d.kvs[1])
    alone = [d.step([Chunk(i, [3], commit=[])])[0] for i in range(2)]
    together = d.step([Chunk(i, [3], commit=[]) for i in range(2)])
    assert not np.array_equal(*alone)
    assert np.array_equal(alone, together)


@pytest.mark.parametrize("seal", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_bytes_do_not_grow_with_the_sequences_that_share(rows, seal):
    """read_bytes: pages of the prefix once, whatever the number of sequences; else as many times."""
    store, shared, copies = "int8" if seal else "bfloat16", {}, {}
    for n in (1, 2, 5, 12):
        d = driver("gqa", store, threads=1)
        d.step([Chunk(0, tokens(2 * BLOCK))])
        if seal:
            d.runner.store.seal(d.kvs[0])
        d.kvs += [d.runner.store.fork(d.kvs[0]) for _ in range(n - 1)]
        chunks = [Chunk(i, tokens(rows, seed=i), commit=[]) for i in range(n)]
        d.step(chunks)
        shared[n] = d.runner.read_bytes
        d.kvs[1:] = [apart(d.runner.store, kv) for kv in d.kvs[1:]]
        d.step(chunks)
        copies[n] = d.runner.read_bytes
    layout = d.runner.store.sealed_layout if seal else d.runner.store.open_layout
    prefix = 2 * BLOCK // 16 * layout.block
    own = shared[1] - prefix
    # rows of a sequence may lie on either side of the border of two pages of the step's own
    page = d.runner.store.open_layout.block
    assert page <= own <= 2 * page
    assert copies[1] == shared[1]
    for n in (2, 5, 12):
        assert n * page <= shared[n] - prefix <= 2 * n * page
        assert copies[n] - n * prefix == shared[n] - prefix


@st.composite
def plans(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """Forks, seals and steps of up to seven sequences."""
    number = st.integers(0, 1 << 20)
    return draw(
        st.lists(
            st.one_of(
                st.tuples(st.just("fork"), number),
                st.tuples(st.just("seal"), number),
                st.tuples(st.just("grow"), st.tuples(number, st.integers(1, 600))),
                st.tuples(st.just("step"), number),
            ),
            min_size=4,
            max_size=14,
        )
    )


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=plans(), name=st.sampled_from(list(MODELS)), store=st.sampled_from(list(STORES)),
       isa=st.sampled_from(_native.isas()), threads=st.integers(1, 3))  # fmt: skip
def test_whatever_is_forked_and_sealed(plan, name, store, isa, threads):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRONGHORN_ISA", isa)
        b = Both(lambda n: driver(name, store, n), threads)
    b.step(Chunk(0, tokens(600)))
    for what, x in [*plan, ("step", 1)]:
        n = len(b.alone.kvs)
        if what == "fork" and n < 7:
            b.fork(x % n)
        elif what == "seal":
            b.seal(x % n)
        elif what == "grow":
            b.step(Chunk(x[0] % n, tokens(x[1], seed=x[0])))
        elif what == "step":
            rng = np.random.default_rng(x)
            some = rng.permutation(n)[: int(rng.integers(1, n + 1))]
            sizes = rng.choice([1, 1, 1, 2, 5, 40], len(some))
            order = some if rng.integers(2) else np.sort(some)
            b.step(*(
                drafts(int(i), x, int(k)) if k == 5 else Chunk(int(i), tokens(int(k), seed=x + int(i)))
                for i, k in zip(order, sizes, strict=True)
            ))  # fmt: skip
