"""The native runner against the reference: every op, shape and dtype, on every instruction set here."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from pronghorn.errors import UnsupportedError
from pronghorn.methods.kvfmt.int8 import Int8 as Int8KV
from pronghorn.methods.weight.int8 import Int8
from pronghorn.model.rope import Rope
from pronghorn.nulls import AsStored
from pronghorn.ops.cpu import _native
from pronghorn.ops.panels import unpack
from pronghorn.ops.ref import Ops
from pronghorn.run import ref as run_ref
from pronghorn.run.native import NativeRunner
from pronghorn.run.ref import RefRunner
from pronghorn.types import KVPlan, Packed
from tests.native_tapes import Chunk, Driver, Model, build, store_for, tokens
from tests.test_native_codes import rounded

LONG = Rope(16, 10000.0, "longrope", 1.0, 24, short=(1.0,) * 8, long=(1.5, 2.0, 2.5, 3, 3, 3, 4, 4))

MODELS = {
    "llama": Model(),
    "mha": Model(heads=3, n_kv=3, dim=20, width=40),
    "mqa": Model(heads=5, n_kv=1, dim=24, width=56, tied=False),
    "wide-heads": Model(heads=6, n_kv=2, dim=80, width=64),
    "window": Model(layers=3, window=5, head_norm=True),
    "softcap": Model(softcap=3.0, fn="gelu_tanh", scale=2.5),
    "gpt": Model(wpe=True, layer_norm=True, bias=True, fn="gelu", plain_mlp=True, n_kv=4),
    "relu": Model(plain_mlp=True, fn="relu", bias=True),
    "moe": Model(experts=5, top_k=2),
    "moe-plain": Model(experts=8, top_k=3, renorm=False, hidden=33),
    "odd": Model(heads=3, n_kv=1, dim=18, width=37, hidden=51, vocab=67),
    "partial-rope": Model(rope=Rope(6, 500.0, "linear", 4.0)),
    "dynamic": Model(rope=Rope(16, 500.0, "dynamic", 2.0, 16)),
    "long": Model(rope=LONG),
}


def pair(m: Model, n_seqs: int, wide: str = "float64", **store) -> tuple[Driver, Driver]:
    bound = build(m, taps=("q.last32", "hidden.0", "hidden.-1"))
    ref = RefRunner(bound, store_for(bound, Ops(wide), **store))
    native = NativeRunner(bound, store_for(bound, Ops("float32"), **store), threads=2)
    return Driver(ref, n_seqs), Driver(native, n_seqs)


def together(ref: Driver, native: Driver, chunks: list[Chunk], tol: float) -> None:
    """Both run the step; logits and taps agree."""
    a, b = ref.step(chunks, taps=True), native.step(chunks, taps=True)
    for x, y in zip(a, b, strict=True):
        assert np.abs(x - y).max() < tol
    assert set(ref.out.taps) == set(native.out.taps)
    for name, x in ref.out.taps.items():
        assert x.shape == native.out.taps[name].shape
        assert np.abs(x - native.out.taps[name]).max() < tol, name


def session(ref: Driver, native: Driver, vocab: int, tol: float, seal: bool = False) -> None:
    """Ragged batches that mix prompts, single tokens and trees, with three sequences."""

    def at_barrier(seq: int) -> None:
        for d in (ref, native):
            if seal:
                d.runner.store.seal(d.kvs[seq])

    def t(n: int, seed: int) -> list[int]:
        return tokens(n, vocab, seed)

    together(ref, native, [Chunk(0, t(19, 1)), Chunk(1, t(1, 2))], tol)
    at_barrier(0)
    together(ref, native, [Chunk(1, t(40, 3)), Chunk(0, t(1, 4))], tol)
    tree = Chunk(0, t(9, 5), [-1, 0, 0, 1, 2, 1, 3, 6, 7], [0, 1, 3])
    together(ref, native, [tree, Chunk(2, t(5, 6)), Chunk(1, t(3, 7), commit=[0])], tol)
    at_barrier(1)
    together(ref, native, [Chunk(1, t(2, 8)), Chunk(0, t(17, 9))], tol)
    at_barrier(0)
    # two roots: alternatives for the very next token
    together(ref, native, [Chunk(0, t(6, 10), [-1, -1, 0, 1, 1, 4], [1, 4, 5])], tol)
    together(ref, native, [Chunk(i, t(1, 11 + i)) for i in range(3)], tol)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("name", MODELS)
def test_float32_equals_the_oracle(name, isa, monkeypatch):
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    ref, native = pair(MODELS[name], 3)
    session(ref, native, MODELS[name].vocab, 3e-5)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("name", ["llama", "mha", "odd", "window"])
def test_sealed_zone(name, isa, monkeypatch):
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    ref, native = pair(MODELS[name], 3, rows="head")
    session(ref, native, MODELS[name].vocab, 3e-5, seal=True)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("name", ["llama", "mqa", "window", "odd"])
def test_int8_kv(name, isa, monkeypatch):
    # The oracle's codes may differ from ours by one where a value lies on the border of two.
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    ref, native = pair(MODELS[name], 3, wide="float32", fmt=Int8KV())
    session(ref, native, MODELS[name].vocab, 5e-3, seal=True)


def in_pairs(monkeypatch) -> None:
    """Makes the reference's attention round as the products of bfloat16 pairs do: queries, and weights
    under the exact maximum, which are normalised by the sum of what they were rounded to."""

    def rounded(x):
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)

    def attend(ops, q, k, v, seen, scale, softcap, bias):
        assert not len(bias)
        x = np.einsum("mgd,td->mgt", rounded(q), k) * scale
        x = softcap * np.tanh(x / softcap) if softcap else x
        return np.where(seen[:, None], x, -np.inf), v

    def merge(ops, parts):
        x = np.concatenate([p[0] for p in parts], -1)
        p = rounded(np.exp(x - x.max(-1, keepdims=True)))
        return p @ np.concatenate([p[1] for p in parts]) / p.sum(-1, keepdims=True)

    monkeypatch.setattr(run_ref.ref, "attend", attend)
    monkeypatch.setattr(run_ref.ref, "merge", merge)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("name", ["llama", "odd", "wide-heads", "window", "softcap", "mqa"])
def test_bfloat16_kv(name, isa, monkeypatch):
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    if isa == "avx512":
        in_pairs(monkeypatch)
    ref, native = pair(MODELS[name], 3, wide="float32", kv="bfloat16")
    session(ref, native, MODELS[name].vocab, 1e-2, seal=True)


class Rounded:
    """A weight format whose products round activations to bfloat16, as the native kernels do."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def matmul(self, x, w, ops):
        return self.inner.matmul(ops.cast(ops.to(x, "bfloat16")), w, ops)


class Whole(AsStored):
    """Matrices of codes as numbers, whose products round activations to integers, as the kernels do."""

    def __init__(self, grid):
        self.grid = grid

    def matmul(self, x, w, ops):
        return ops.matmul(ops.cast(rounded(x, self.grid)), ops.cast(w.fields["w"]))


def like_native(packed, fmt):
    if packed.grid is None:
        return packed, Rounded(fmt)
    return AsStored().pack(unpack(packed).dense()), Whole(packed.grid)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("name", ["llama", "odd", "moe-plain", "gpt"])
@pytest.mark.parametrize("kind", ["bfloat16", "codes"])
def test_narrow_matrices(kind, name, isa, monkeypatch):
    # Float32 sums in another order than the oracle's now and then round an activation the other way
    # (2^-9 of one input): the largest difference is loose, the typical one is not. A row whose router hardly
    # prefers one expert to the next may then go to the other one.
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    m = MODELS[name]
    m = dataclasses.replace(m, formats=(Int8(),)) if kind == "codes" else dataclasses.replace(m, dtype=kind)
    bound = build(m)
    assert {p.kind for p, _ in bound.mats.values()} == {kind}
    mats = {key: like_native(p, fmt) for key, (p, fmt) in bound.mats.items()}
    rounded = dataclasses.replace(bound, mats=mats)
    ref = Driver(RefRunner(rounded, store_for(bound, Ops("float64"))), 1)
    native = Driver(NativeRunner(bound, store_for(bound, Ops("float32")), threads=2), 1)
    margins: list[np.ndarray] = []
    route = run_ref.ref.route

    def watched(ops, logits, top_k, renorm):
        falling = -np.sort(-logits, axis=-1)
        margins.append(falling[:, top_k - 1] - falling[:, top_k])
        return route(ops, logits, top_k, renorm)

    monkeypatch.setattr(run_ref.ref, "route", watched)
    for n in (1, 2, 3, 5, 12, 13, 31, 200):
        chunk = [Chunk(0, tokens(n, m.vocab, n))]
        margins.clear()
        a, b = ref.step(chunk)[0], native.step(chunk)[0]
        gap = np.abs(a - b)
        assert np.median(gap) < 2e-3
        sure = np.min(margins, axis=0) > 2e-4 if margins else np.full(n, True)
        assert sure.sum() > 0.98 * n - 1
        assert gap[sure].max(initial=0) < 0.1 * np.abs(a).max()


@pytest.mark.parametrize("isa", _native.isas())
def test_heads_that_keep_different_rows(isa, monkeypatch):
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    ref, native = pair(MODELS["window"], 2, rows="head")
    chunks = [Chunk(0, tokens(70)), Chunk(1, tokens(33, seed=2))]
    together(ref, native, chunks, 3e-5)
    rng = np.random.default_rng(0)
    groups = len(ref.runner.store.sealed_layout.groups)
    keep = {g: np.sort(rng.permutation(70)[: 5 + 9 * g]).astype(np.int32) for g in range(groups)}
    for d in (ref, native):
        d.runner.store.seal(d.kvs[0])
        d.runner.store.apply(d.kvs[0], KVPlan(keep), False)
    for seed in range(3):
        together(ref, native, [Chunk(0, tokens(4, seed=seed)), Chunk(1, tokens(1))], 3e-5)
    for d in (ref, native):
        d.runner.store.seal(d.kvs[0])  # behind pages that are not full
    together(ref, native, [Chunk(0, tokens(4)), Chunk(1, tokens(1))], 3e-5)


def test_wanted_rows_only():
    bound = build(Model())
    d = Driver(NativeRunner(bound, store_for(bound, Ops("float32")), threads=2), 1)
    every = d.step([Chunk(0, tokens(30), commit=[])])[0]
    chain = np.arange(30, dtype=np.int32)
    want = (chain % 7 == 3).astype(np.int32)
    from pronghorn.types import Rows

    ids = np.array(tokens(30), np.int32)
    rows = Rows(ids, chain, chain + np.int32(1), chain * 0, chain - np.int32(1), want)
    some = d.runner.run(rows, d.kvs, False).logits
    assert np.array_equal(some, every[want == 1])
    none = d.runner.run(rows._replace(want=want * 0), d.kvs, False).logits
    assert none.shape == (0, 101)


def test_unknown_kinds_are_refused():
    bound = build(Model())
    key = next(iter(bound.mats))
    odd = Packed("int3", (101, 48), {"w": np.zeros((101, 48), np.uint8)})
    mats = {**bound.mats, key: (odd, bound.mats[key][1])}
    with pytest.raises(UnsupportedError, match=r"int3.*reference runner"):
        NativeRunner(dataclasses.replace(bound, mats=mats), store_for(bound, Ops("float32")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": [0, 101, 0]}, "row 1 of 3: token id"),
        ({"ids": [0, 0, -1]}, "row 2 of 3: token id"),
        ({"seq": [0, 0, 2]}, "sequence out of range"),
        ({"seq": [0, 1, 0]}, "parent's sequence"),
        ({"seq": [0, 1, 0], "parent": [-1, -1, -1]}, "not contiguous"),
        ({"parent": [-1, 1, 0]}, "parent out of range"),
        ({"parent": [-2, 0, 0]}, "parent out of range"),
        ({"pos": [0, -1, 2]}, "position out of range"),
        ({"pos": [0, 1, 512]}, "position out of range"),
    ],
)
def test_rows_out_of_range_are_refused(change, message):
    from pronghorn.types import Rows

    bound = build(Model(wpe=True))
    d = Driver(NativeRunner(bound, store_for(bound, Ops("float32")), threads=1), 2)
    good = {"ids": [1, 2, 3], "pos": [0, 1, 2], "span": [1, 2, 3], "seq": [0, 0, 0],
            "parent": [-1, 0, 1], "want": [1, 1, 1]}  # fmt: skip
    d.runner.run(Rows(*[np.array(v, np.int32) for v in good.values()]), d.kvs, False)
    bad = Rows(*[np.array(v, np.int32) for v in {**good, **change}.values()])
    with pytest.raises(ValueError, match=message):
        d.runner.run(bad, d.kvs, False)


def test_commit_refuses_places_that_do_not_exist():
    bound = build(Model())
    d = Driver(NativeRunner(bound, store_for(bound, Ops("float32")), threads=1), 1)
    d.step([Chunk(0, tokens(5), commit=[])])
    addr, block, slot = d.runner.store.reserve(d.kvs[0], 1)
    for row, s in ((5, slot), (-1, slot), (0, slot + 16), (0, slot - 1)):
        with pytest.raises(ValueError, match="commit"):
            d.runner.commit(np.array([row], np.int32), addr, block, s)


@pytest.mark.parametrize("n_vocab", [1, 5, 8, 300])
def test_largest_logits(n_vocab: int) -> None:
    """Ties go to the lower id, and a small vocabulary is filled up with -1."""
    from pronghorn.run.native import NativeRunner
    from pronghorn.run.ref import RefRunner

    x = np.random.default_rng(n_vocab).integers(0, 40, (6, n_vocab)).astype(np.float32)
    x[0, :] = -np.inf
    want = RefRunner.top(None, x, 8)  # type: ignore[arg-type]
    got = NativeRunner.top(None, x, 8)  # type: ignore[arg-type]
    assert got.dtype == np.int32
    assert (got == want).all()
    assert (got[:, n_vocab:] == -1).all()
