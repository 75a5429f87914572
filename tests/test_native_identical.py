"""Bit for bit: a row's result does not depend on the other rows of its step, nor on the threads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pronghorn.methods.kvfmt.int8 import Int8 as Int8KV
from pronghorn.methods.weight.int8 import Int8
from pronghorn.ops.cpu import _native
from pronghorn.ops.ref import Ops
from pronghorn.run.native import NativeRunner
from tests.native_tapes import Chunk, Driver, Model, build, store_for, tokens

MODELS = {
    "llama": Model(),
    "window": Model(layers=3, window=21, heads=3, n_kv=1, dim=20, softcap=8.0),
    "mha": Model(heads=3, n_kv=3, dim=80, width=37, hidden=51, layer_norm=True, bias=True),
    "moe": Model(experts=6, top_k=2),
}
N = 150  # tokens of the text
FORMATS = {"float32": ("float32", ()), "bfloat16": ("bfloat16", ()), "int8": ("float32", (Int8(),))}


def driver(m: Model, weights: str, kv: str, threads: int = 1, n_seqs: int = 1, fmt=None) -> Driver:
    dtype, formats = FORMATS[weights]
    bound = build(dataclasses.replace(m, dtype=dtype, formats=formats))
    store = store_for(bound, Ops("float32"), kv, fmt)
    return Driver(NativeRunner(bound, store, threads), n_seqs)


def in_chunks(d: Driver, text: list[int], sizes: list[int], seq: int = 0) -> np.ndarray:
    """Logits of the whole text, run in chunks of the given sizes, the last one repeated."""
    out, at = [], 0
    while at < len(text):
        size = sizes[min(len(out), len(sizes) - 1)]
        out.append(d.step([Chunk(seq, text[at : at + size])])[0])
        at += size
    return np.concatenate(out)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize(("weights", "kv"), [("float32", "float32"), ("bfloat16", "bfloat16"),
                                             ("int8", "float32")])  # fmt: skip
@pytest.mark.parametrize("name", MODELS)
def test_chunks_and_threads(name, weights, kv, isa, monkeypatch):
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    text = tokens(N)
    whole = in_chunks(driver(MODELS[name], weights, kv), text, [N])
    assert np.isfinite(whole).all()
    for sizes, threads in (([1], 1), ([1], 2), ([7], 2), ([16], 1), ([64], 2), ([3, 50, 13], 3), ([N], 3)):
        got = in_chunks(driver(MODELS[name], weights, kv, threads), text, sizes)
        assert np.array_equal(whole, got), (sizes, threads)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_trees_equal_their_paths(name, weights, isa, monkeypatch):
    """Every node of a random tree has the logits of its own path run token by token."""
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    rng = np.random.default_rng(3)
    d = driver(MODELS[name], weights, "bfloat16", 2)
    prompt = tokens(37)
    d.step([Chunk(0, prompt)])
    n = 40
    parent = [int(rng.integers(max(-1, i - 6), i)) for i in range(n)]
    ids = tokens(n, seed=9)
    tree = d.step([Chunk(0, ids, parent, [])])[0]
    for node in rng.permutation(n)[:8]:
        path = [int(node)]
        while parent[path[0]] >= 0:
            path.insert(0, parent[path[0]])
        alone = driver(MODELS[name], weights, "bfloat16")
        alone.step([Chunk(0, prompt)])
        steps = [alone.step([Chunk(0, [ids[i]])])[0][0] for i in path]
        assert np.array_equal(steps[-1], tree[node])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("weights", FORMATS)
def test_batches_equal_single_sequences(name, weights):
    texts = [tokens(n, seed=n) for n in (5, 90, 33, 64)]
    alone = [in_chunks(driver(MODELS[name], weights, "bfloat16"), t, [11]) for t in texts]
    d = driver(MODELS[name], weights, "bfloat16", 2, len(texts))
    out: list[list[np.ndarray]] = [[] for _ in texts]
    rng = np.random.default_rng(0)
    at = [0] * len(texts)
    while any(a < len(t) for a, t in zip(at, texts, strict=True)):
        order = [int(i) for i in rng.permutation(len(texts)) if at[i] < len(texts[i])]
        chunks = [Chunk(i, texts[i][at[i] : at[i] + int(rng.integers(1, 30))]) for i in order]
        for c, logits in zip(chunks, d.step(chunks), strict=True):
            out[c.seq].append(logits)
            at[c.seq] += len(c.ids)
    for a, b in zip(alone, out, strict=True):
        assert np.array_equal(a, np.concatenate(b))


@pytest.mark.parametrize("fmt", [None, Int8KV()])
def test_sealed_at_the_same_lengths(fmt):
    """Sealing at 48 and 96 committed rows; chunks between them cut at will."""
    text = tokens(N)

    def run(sizes: list[int], threads: int) -> np.ndarray:
        d = driver(MODELS["window"], "bfloat16", "bfloat16", threads, fmt=fmt)
        parts = []
        for from_, to in ((0, 48), (48, 96), (96, N)):
            parts.append(in_chunks(d, text[from_:to], sizes))
            d.runner.store.seal(d.kvs[0])
        return np.concatenate(parts)

    whole = run([N], 1)
    for sizes, threads in (([1], 1), ([5], 2), ([17, 4], 3)):
        assert np.array_equal(whole, run(sizes, threads))


def test_rejected_rows_leave_no_trace():
    d, plain = (driver(MODELS["llama"], "bfloat16", "bfloat16", 2) for _ in range(2))
    text = tokens(60)
    d.step([Chunk(0, text[:20])])
    plain.step([Chunk(0, text[:20])])
    for i in range(20, 60, 2):
        wrong = tokens(3, seed=i)
        # the pending token, a right guess and wrong branches; two rows stay
        ids, parent = [text[i], wrong[0], text[i + 1], wrong[1], wrong[2]], [-1, 0, 0, 1, 2]
        got = d.step([Chunk(0, ids, parent, [0, 2])])[0]
        want = plain.step([Chunk(0, text[i : i + 2])])[0]
        assert np.array_equal(got[[0, 2]], want)
