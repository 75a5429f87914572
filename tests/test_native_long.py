"""Attention over several blocks of keys: the same bits however they are dealt out, and the right values."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pronghorn.methods.kvfmt.int8 import Int8 as Int8KV
from pronghorn.ops.cpu import _native
from pronghorn.ops.ref import Ops
from pronghorn.run.native import NativeRunner
from pronghorn.run.ref import RefRunner
from tests.native_tapes import Chunk, Driver, Model, build, store_for, tokens

N = 1333  # more than five blocks of 256 keys, and odd
MODELS = {
    "gqa": Model(layers=1, heads=6, n_kv=2, dim=32, hidden=16),
    "window": Model(layers=2, heads=3, n_kv=1, dim=20, hidden=16, window=300, softcap=8.0),
}


def driver(name: str, kv: str, fmt=None, threads: int = 1) -> Driver:
    m = dataclasses.replace(MODELS[name], dtype="bfloat16" if kv == "bfloat16" else "float32")
    bound = build(m)
    return Driver(NativeRunner(bound, store_for(bound, Ops("float32"), kv, fmt), threads), 1)


def read(d: Driver, text: list[int], sizes: list[int], seal_at: int = 0) -> np.ndarray:
    """Logits of the last row of each step, by position; NaN between. Sealed when that many are in."""
    out = np.full((len(text), 101), np.nan, np.float32)
    at, i = 0, 0
    while at < len(text):
        n = sizes[min(i, len(sizes) - 1)]
        if at < seal_at:
            n = min(n, seal_at - at)
        out[at : at + n] = d.step([Chunk(0, text[at : at + n])])[0]
        at, i = at + n, i + 1
        if at == seal_at:
            d.runner.store.seal(d.kvs[0])
    return out


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize(("kv", "fmt"), [("float32", None), ("bfloat16", None), ("bfloat16", Int8KV()),
                                         ("float32", Int8KV())])  # fmt: skip
@pytest.mark.parametrize("name", MODELS)
def test_bits_do_not_depend_on_who_reads_a_block(name, kv, fmt, isa, monkeypatch):
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    text, seal_at = tokens(N), 800
    whole = read(driver(name, kv, fmt), text, [seal_at, N], seal_at)
    assert np.isfinite(whole).all()
    for sizes, threads in (([255, 1, 300, 7], 2), ([97], 3), ([N - 30, 3, 1], 4)):
        got = read(driver(name, kv, fmt, threads), text, sizes, seal_at)
        assert np.array_equal(whole, got), (sizes, threads)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("kv", ["float32", "bfloat16"])
@pytest.mark.parametrize("n", [255, 256, 509, 1030])
def test_trees_across_a_border(n, kv, isa, monkeypatch):
    """Draft trees whose chains begin at odd numbers and cross from one block of keys to the next."""
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    rng = np.random.default_rng(n)
    text, m = tokens(n), 24
    d = driver("gqa", kv, None, 2)
    d.step([Chunk(0, text)])
    parent = [int(rng.integers(max(-1, i - 3), i)) for i in range(m)]
    ids = tokens(m, seed=9)
    tree = d.step([Chunk(0, ids, parent, [])])[0]
    for node in rng.permutation(m)[:4]:
        path = [int(node)]
        while parent[path[0]] >= 0:
            path.insert(0, parent[path[0]])
        alone = driver("gqa", kv, None, 3)
        alone.step([Chunk(0, text)])
        last = [alone.step([Chunk(0, [ids[i]])])[0][0] for i in path][-1]
        assert np.array_equal(last, tree[node])


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("name", MODELS)
def test_many_blocks_equal_the_oracle(name, isa, monkeypatch):
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    bound = build(MODELS[name])
    text = tokens(N)
    ref = Driver(RefRunner(bound, store_for(bound, Ops("float64"))), 1)
    native = Driver(NativeRunner(bound, store_for(bound, Ops("float32")), threads=2), 1)
    for chunk in (text[: N - 1], text[N - 1 :]):
        a, b = ref.step([Chunk(0, chunk)])[0], native.step([Chunk(0, chunk)])[0]
        assert np.abs(a - b).max() < 3e-5


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("name", MODELS)
def test_pairs_cost_no_more_than_storing(name, isa, monkeypatch):
    """Rounding queries and weights to bfloat16 adds an error like that of keys and values stored so:
    together sqrt(2) times as much."""
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    bound = build(MODELS[name])
    chunk = Chunk(0, tokens(N))
    exact = Driver(RefRunner(bound, store_for(bound, Ops("float64"))), 1).step([chunk])[0]
    ref = Driver(RefRunner(bound, store_for(bound, Ops("float32"), "bfloat16")), 1).step([chunk])[0]
    native = Driver(NativeRunner(bound, store_for(bound, Ops("float32"), "bfloat16"), threads=2), 1)
    gap, stored = (np.sqrt(np.mean((x - exact) ** 2)) for x in (native.step([chunk])[0], ref))
    assert gap < 1.5 * stored
