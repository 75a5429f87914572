"""MiniCache: two layers' rows in one page. What becomes of lengths and directions, bytes, and the kernels."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE
from pronghorn.kv.look import Look, by_ops
from pronghorn.kv.store import SeqKV, Store
from pronghorn.llm import LLM
from pronghorn.methods.kvfmt.bf16 import Bf16
from pronghorn.methods.kvfmt.minicache import Minicache
from pronghorn.methods.select.quest import Quest
from pronghorn.model.bind import bind
from pronghorn.nulls import Dense
from pronghorn.ops.cpu import _native
from pronghorn.ops.ref import Ops
from pronghorn.run.native import NativeRunner
from pronghorn.run.ref import RefRunner
from pronghorn.types import KVPlan
from tests.conformance._rig import N_VOCAB, Small, weights
from tests.lookups import MODEL, answered, tasks
from tests.native_tapes import Chunk, Driver, Model, build, in_company, store_for, tokens

LAYERS, HEADS, DIM = 4, 2, 32
BF16 = 2.0**-8


def store_of(fmt: Any, layers: int = LAYERS, dim: int = DIM, selector: Any = None, ops: Any = None) -> Store:
    ops = ops or Ops("float32")
    return Store(ops, layers, HEADS, dim, "bfloat16", fmt, selector or Dense(), "seq", [None] * layers)


def filled(store: Store, rows: Any) -> SeqKV:
    """A sequence with rows (layers, HEADS, 2, n, dim), sealed."""
    kv, n = store.new(), rows.shape[3]
    store.reserve(kv, n)
    store.extend(kv, np.arange(n, dtype=np.int32))
    lay, ops = store.open_layout, store.ops
    for m, pair in enumerate(rows.reshape(-1, 2, n, rows.shape[-1])):
        k, v = (ops.to(ops.array(x.reshape(-1, PAGE, x.shape[-1])), "bfloat16") for x in pair)
        store.open_arena.write(
            kv.open,
            lay.where(0, m, 0),
            "bfloat16",
            store._contiguous(ops.xp.permute_dims(k, (0, 2, 1)).reshape((len(k), -1))),
        )
        store.open_arena.write(kv.open, lay.where(0, m, 1), "bfloat16", v.reshape((len(v), -1)))
    store.seal(kv)
    return kv


def read(kv: SeqKV) -> Any:
    """(layers, HEADS, 2, n, dim)."""
    view = kv.store.view(kv, kv.length)
    return np.stack([view.k, view.v], axis=2)


def rounded(x: Any) -> Any:
    ops = Ops("float32")
    return ops.cast(ops.to(np.asarray(x, np.float32), "bfloat16"))


def some(seed: int, n: int = 4 * PAGE, layers: int = LAYERS, dim: int = DIM) -> Any:
    r = np.random.default_rng(seed)
    return rounded(
        r.standard_normal((layers, HEADS, 2, n, dim)) * np.exp(r.standard_normal((layers, HEADS, 2, n, 1)))
    )


def angle(a: Any, b: Any) -> Any:
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a.astype(float), b.astype(float)))
    return 2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=-1) / 2, 0, 1))


@pytest.mark.parametrize("options", ["start=-0.1", "towards=2", "distinct=0", "distinct=9"])
def test_options(options: str) -> None:
    with pytest.raises(MethodError, match="minicache: "):
        LLM(use=[f"minicache:{options}"])


def test_layers() -> None:
    assert Minicache().under(8) == {5: 4, 7: 6}
    assert Minicache().under(3) == {2: 1}
    assert Minicache(0.25).under(6) == {2: 1, 4: 3}
    assert Minicache(1.0).under(9) == Minicache().under(1) == Minicache().under(2) == {}


def test_layers_that_are_alike_come_back_as_they_were() -> None:
    x = some(0)
    x[3] = x[2]
    assert (read(filled(store_of(Minicache()), x)) == x).all()
    x[3] = rounded(x[2] * 4)  # or differ in length
    assert (read(filled(store_of(Minicache()), x)) == x).all()


@pytest.mark.parametrize("distinct", [1, 3])
def test_lengths_stay_and_directions_are_on_the_arc(distinct: int) -> None:
    x = some(1)
    x[3] = rounded(x[2] * np.exp(x[0, :, :, :, :1]) + np.linalg.norm(x[2], axis=-1, keepdims=True) * x[1] / 6)
    x[3, 0, 0, 5] = -x[2, 0, 0, 5]  # no arc, and the farthest
    got = read(filled(store_of(Minicache(distinct=distinct)), x))
    assert (got[:2] == x[:2]).all()
    size, want = np.linalg.norm(got, axis=-1), np.linalg.norm(x, axis=-1)
    assert np.abs(size / want - 1).max() < BF16
    between, low, up = angle(x[2], x[3]), angle(got[2], x[2]), angle(got[3], x[3])
    same = (got[2] == x[2]).all(axis=-1) & (got[3] == x[3]).all(axis=-1)
    pages = same.reshape(HEADS, 2, -1, PAGE)
    assert (pages.sum(axis=-1) == distinct).all()
    between_of = between.reshape(pages.shape)
    farthest = np.sort(between_of, axis=-1)[..., -distinct:]
    assert np.allclose(np.sort(np.where(pages, between_of, 0), axis=-1)[..., -distinct:], farthest)
    assert np.abs(low - 0.6 * between)[~same].max() < BF16
    assert np.abs(up - 0.4 * between)[~same].max() < BF16


def test_rows_of_no_length() -> None:
    x = some(2)
    x[2, :, :, 3], x[3, :, :, 20], x[2:, :, :, 40] = 0, 0, 0
    got = read(filled(store_of(Minicache()), x))
    assert np.isfinite(got).all()
    assert (got[2:, :, :, 3] == x[2:, :, :, 3]).all()  # only this layer has a direction: kept beside
    assert (got[3, :, :, 20] == 0).all() and (got[2:, :, :, 40] == 0).all()
    assert angle(got[2, :, :, 20], x[2, :, :, 20]).max() < BF16


def test_libraries_agree() -> None:
    torch = pytest.importorskip("torch")
    x = some(3)
    a, b = store_of(Minicache()), store_of(Minicache(), ops=Ops("float32", torch))
    one, two = filled(a, x), filled(b, x)
    assert (read(one) == read(two)).all()


def test_bytes() -> None:
    x = some(4, layers=8, dim=64)
    merged, plain = store_of(Minicache(), 8, 64), store_of(Bf16(), 8, 64)
    pair = [filled(s, x) for s in (merged, plain)]
    assert merged.open_arena.held == plain.open_arena.held == 0
    assert merged.held == merged.sealed_arena.held <= 0.78 * plain.held
    assert merged.held_by(pair[:1]) == merged.held
    assert store_of(Minicache(1.0), 8, 64).sealed_layout.block == plain.sealed_layout.block


def test_pages_that_are_shared_dropped_and_written_again() -> None:
    store, x = store_of(Minicache(), selector=Quest(tokens=16, dense_layers=0)), some(5)
    x[3] = rounded(x[2] + x[1] / 8)
    kv = filled(store, x)
    before = read(kv)
    fork = store.fork(kv)
    held = store.held
    keep = np.delete(np.arange(4 * PAGE, dtype=np.int32), [3, 17, 18, 40])
    store.seal(fork, KVPlan({0: keep}))
    assert store.held > held
    assert (read(kv) == before).all()
    again = read(fork)
    assert np.abs(again[:2] - before[:2, :, :, keep]).max() == 0
    off = np.linalg.norm(again - x[:, :, :, keep], axis=-1) / np.linalg.norm(x[:, :, :, keep], axis=-1)
    assert off.max() < 1
    store.cut(kv, 2 * PAGE)
    assert (read(kv) == before[:, :, :, : 2 * PAGE]).all()
    for m in range(LAYERS * HEADS):  # an index of what is read, also of the layer below
        index = store.read_fields(kv.sealed[0].blocks, 0, m, own=False)
        k, _ = store.sealed_rows(kv, *divmod(m, HEADS))
        assert (index["hi"][:, 0] >= k.max(axis=1)).all() and (index["lo"][:, 0] <= k.min(axis=1)).all()
    for a in (kv, fork):
        store.free(a)
    assert store.held == 0


def shift(alike: bool) -> float:
    """By how much merging moves the small model's logits, in units of what rounding alone does."""
    tape, tensors = weights(n_layers=4)
    if alike:  # the lower layer adds nothing, so that both see the same
        tensors |= {name: 0 * tensors[name] for name in ("2.o", "2.down")}
        tensors |= {f"3.{name}": tensors[f"2.{name}"] for name in ("n1", "k", "v")}
    bound = bind(tape, tensors, (), (), ("q.last1",))
    ids = np.random.default_rng(1).integers(0, N_VOCAB, 50).tolist()
    out = []
    for fmt in (None, Minicache(1.0), Minicache()):
        run = Small(bound, None, fmt)
        run.feed(ids[:37], 50)
        run.store.seal(run.kv)
        out.append(run.feed(ids[37:], 50))
    return float(np.abs(out[2] - out[0]).max() / np.abs(out[1] - out[0]).max())


def test_layers_that_have_nothing_in_common_lose() -> None:
    assert shift(alike=True) < 4
    assert shift(alike=False) > 20


def test_look_ups() -> None:
    """These layers have nothing in common: two middle ones do not bear it, and the last two happen to."""
    asked = tasks("vt", 12, 300)
    said = []
    for spec in ("minicache", "minicache:start=0.25"):
        llm = LLM(MODEL, use=[spec], threads=1, defaults=("match", "fcfs"))
        said.append(answered(llm, asked, 2))
        llm.close()
    assert said[0] >= 10
    assert said[1] <= 8


def test_policies_that_keep_other_rows_in_each_layer_are_refused() -> None:
    with pytest.raises(MethodError, match="minicache lays pages of one layer on another's"):
        LLM(use=["minicache", "pyramidkv:policy='snapkv:budget=24,window=8,kernel=3'"])
    with pytest.raises(ValueError, match="may keep other rows"):
        Store(Ops("float32"), 4, 2, 8, "float32", Minicache(), Dense(), "layer", [None] * 4)


# ------------------------------------------------------------------------------ native


def drivers(m: Model, kv: str, n_seqs: int) -> tuple[Driver, Driver]:
    bound = build(dataclasses.replace(m, dtype=kv))
    ref, native = (store_for(bound, Ops("float32"), kv, Minicache(0.0, distinct=2)) for _ in range(2))
    return Driver(RefRunner(bound, ref), n_seqs), Driver(NativeRunner(bound, native, 2), n_seqs)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("kv", ["float32", "bfloat16"])
@pytest.mark.parametrize("m", [
    Model(heads=14, n_kv=2, dim=16), Model(layers=3, window=37, softcap=3.0, dim=20),
    Model(heads=3, n_kv=1, dim=33, width=37, hidden=51),
], ids=["gqa", "window", "odd"])  # fmt: skip
def test_native_is_the_reference(m: Model, kv: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    ref, native = drivers(m, kv, 2)
    sizes = {0: (330, 1, 20), 1: (9, 70, 3)}
    tolerance = 1e-4 if kv == "float32" else 0.06
    for step in range(3):
        chunks = [Chunk(i, tokens(sizes[i][step], seed=step + i)) for i in range(2)]
        for a, b in zip(ref.step(chunks), native.step(chunks), strict=True):
            assert np.abs(a - b).max() < tolerance * max(1.0, float(np.abs(a).max()))
        for d in (ref, native):
            same_open(ref, native)
            for kvs in d.kvs:
                d.runner.store.seal(kvs)
    for r in (1, 40):
        q = np.random.default_rng(r).normal(size=(m.heads, r, m.dim)).astype(np.float32)
        pos = np.arange(351 - r, 351, dtype=np.int32)
        for layer in (0, 1):
            for what in Look:
                got, want = (f(native.kvs[0], layer, q, pos, what) for f in (native.runner.look, by_ops))
                seen = np.isfinite(want)
                assert (np.isfinite(got) == seen).all()
                assert np.abs(got[seen] - want[seen]).max() < 4e-5 * (r if what is Look.SUMS else 1)


def same_open(ref: Driver, native: Driver) -> None:
    """Their open rows differ in the last bits, by which other rows could be distinct."""
    a, b = ref.runner.store, native.runner.store
    for kv, other in zip(ref.kvs, native.kvs, strict=True):
        if other.n_open and kv.n_open:
            whole = b.open_arena.read(other.open, 0, "uint8", (b.open_layout.block,))
            a.open_arena.write(kv.open, 0, "uint8", np.ascontiguousarray(whole))


@pytest.mark.parametrize("isa", _native.isas())
def test_bits_do_not_depend_on_company(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    bound = build(Model(heads=14, n_kv=2, dim=16, dtype="bfloat16"))
    text, more = tokens(330), tokens(40, seed=2)

    def run(sizes: list[int], threads: int, forks: int = 0) -> Any:
        store = store_for(bound, Ops("float32"), "bfloat16", Minicache(0.0))
        return in_company(NativeRunner(bound, store, threads), text, more, sizes, forks)

    whole = run([40], 1)
    assert np.isfinite(whole).all()
    for sizes, threads, forks in (([1], 2, 0), ([7, 2, 30], 3, 0), ([1, 9], 2, 3)):
        assert np.array_equal(whole, run(sizes, threads, forks))


@pytest.mark.parametrize(("rows", "beside", "n", "block", "why"), [
    ([0], [0], 1, 512, "every head"), ([0, 0], [0, 1088], 1, 1152, "factors within"),
    ([0, 1024], [0, 0], 1, 1152, "pages within"), ([0, 0], [0, 1024], 17, 4096, "stand for"),
    ([0, 8], [0, 1024], 1, 4096, "pages within"),
])  # fmt: skip
def test_pages_out_of_bounds_are_refused(rows: Any, beside: Any, n: int, block: int, why: str) -> None:
    exe = _native.Executor("", 1, 5, 2, 1, 1, 16, [16])
    exe.set_zones(1, 1024, [0, 512, 0, 0], 1, 1024, [0, 512, 0, 0], [], [], [0, 0], [0, 1])
    with pytest.raises(ValueError, match=why):
        exe.set_upon(rows, beside, n, block)
