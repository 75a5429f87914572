"""Attention over KV in codes: every format that describes its codes, on every instruction set here."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from pronghorn.errors import UnsupportedError
from pronghorn.kv.look import Look, by_ops
from pronghorn.methods.kvfmt import _codes
from pronghorn.methods.kvfmt.fp8 import Fp8
from pronghorn.methods.kvfmt.gear import Gear
from pronghorn.methods.kvfmt.int4 import Int4
from pronghorn.methods.kvfmt.kivi import Kivi
from pronghorn.methods.kvfmt.mikv import Mikv
from pronghorn.methods.kvfmt.think import Think
from pronghorn.methods.kvfmt.turbo import Turbo
from pronghorn.methods.kvfmt.zipcache import ZipCache
from pronghorn.ops.cpu import _native
from pronghorn.ops.ref import Ops
from pronghorn.run.native import NativeRunner
from pronghorn.run.ref import RefRunner
from pronghorn.types import UNSAID, Codes, Said
from tests.native_tapes import Chunk, Driver, Model, build, in_company, store_for, tokens

FORMATS: dict[str, Any] = {
    "int4": Int4(), "int4-channel": Int4(keys="channel"), "fp8": Fp8(), "kivi": Kivi(), "kivi4": Kivi(4),
    "turbo": Turbo(), "turbo2": Turbo(2), "zipcache": ZipCache(), "gear": Gear(rank=2, outliers=0.03),
    "gear2": Gear(2), "think": Think(),
    "mikv": Mikv(), "zipcache-salient": ZipCache(2, 10),
}  # fmt: skip
MODELS = {
    "gqa": Model(heads=14, n_kv=2, dim=16),  # 7 queries of a KV head
    "mqa": Model(heads=5, n_kv=1, dim=64, layers=1),
    "wide": Model(heads=2, n_kv=1, dim=130, layers=1),  # three groups of channels
    "odd": Model(heads=3, n_kv=1, dim=33, width=37, hidden=51),
    "window": Model(layers=3, window=37, softcap=3.0, dim=20),
}
TEXT = 330  # more than a block of keys


def pair(m: Model, fmt: Any, kv: str, n_seqs: int = 1) -> tuple[Driver, Driver]:
    bound = build(dataclasses.replace(m, dtype=kv))
    ref = RefRunner(bound, store_for(bound, Ops("float32"), kv, fmt))
    return Driver(ref, n_seqs), Driver(
        NativeRunner(bound, store_for(bound, Ops("float32"), kv, fmt), 2), n_seqs
    )


def seal(d: Driver, i: int) -> None:
    """Seals a sequence's rows; what queries say of them is drawn by lot."""
    store, kv = d.runner.store, d.kvs[i]
    lot = np.random.default_rng(kv.length)
    by_head = store.n_layers, store.n_kv
    said = Said(lot.random((*by_head, kv.n_rows)), lot.random((*by_head, store.head_dim)))
    store.seal(kv, said=said if store.fmt.traits.taps else UNSAID)


def copied(ref: Driver, native: Driver) -> None:
    """The same stored rows in both: their open rows differ in the last bits, which could be other codes."""
    a, b = ref.runner.store, native.runner.store
    for kv, other in zip(ref.kvs, native.kvs, strict=True):
        for f, spec in enumerate(b.open_layout.fields):
            for i in range(b.n_layers * b.n_kv):
                at = b.open_layout.where(0, i, f)
                values = b.open_arena.read(other.open, at, spec.dtype, spec.shape)
                a.open_arena.write(kv.open, at, spec.dtype, values)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("kv", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_native_is_the_reference(
    fmt: str, name: str, kv: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    m = MODELS[name]
    ref, native = pair(m, FORMATS[fmt], kv, 2)
    tolerance = 1e-4 if kv == "float32" else 0.06
    sizes = {0: (TEXT, 1, 20), 1: (9, 70, 3)}
    for step in range(3):
        chunks = [Chunk(i, tokens(sizes[i][step], seed=step + i)) for i in range(2)]
        for a, b in zip(ref.step(chunks), native.step(chunks), strict=True):
            assert np.abs(a - b).max() < tolerance * max(1.0, float(np.abs(a).max()))
        copied(ref, native)
        for d in (ref, native):
            for i in range(2):
                seal(d, i)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("kv", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gqa", "wide", "window"])
@pytest.mark.parametrize("fmt", ["int4", "kivi", "fp8", "turbo", "gear", "think", "mikv"])
def test_bits_do_not_depend_on_company(fmt: str, name: str, kv: str, isa: str,
                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Rows one by one, in chunks, on one thread or several, beside forks that share the pages."""
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    bound = build(dataclasses.replace(MODELS[name], dtype=kv))
    text, more = tokens(TEXT), tokens(60, seed=2)

    def run(sizes: list[int], threads: int, forks: int = 0) -> np.ndarray:
        store = store_for(bound, Ops("float32"), kv, FORMATS[fmt])
        return in_company(NativeRunner(bound, store, threads), text, more, sizes, forks)

    whole = run([60], 1)
    assert np.isfinite(whole).all()
    for sizes, threads, forks in (([1], 2, 0), ([7, 2, 30], 3, 0), ([1, 9], 2, 3)):
        assert np.array_equal(whole, run(sizes, threads, forks))


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("name", ["mqa", "odd", "window"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_policies_look_at_codes(fmt: str, name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    m = MODELS[name]
    _, d = pair(m, FORMATS[fmt], "bfloat16")
    d.step([Chunk(0, tokens(150))])
    seal(d, 0)
    d.step([Chunk(0, tokens(21))])
    for r in (1, 9, 40):
        q = np.random.default_rng(r).normal(size=(m.heads, r, m.dim)).astype(np.float32)
        pos = np.arange(171 - r, 171, dtype=np.int32)
        for what in Look:
            got, want = (f(d.kvs[0], 0, q, pos, what) for f in (d.runner.look, by_ops))
            seen = np.isfinite(want)
            assert (np.isfinite(got) == seen).all()
            assert np.abs(got[seen] - want[seen]).max() < 2e-5 * (r if what is Look.SUMS else 1)


@pytest.mark.parametrize("seed", range(16))
def test_random_shapes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Odd head sizes, groups and steps."""
    rng = np.random.default_rng(seed)
    monkeypatch.setenv("PRONGHORN_ISA", _native.isas()[seed % len(_native.isas())])
    n_kv = int(rng.integers(1, 4))
    dim = int(rng.choice([1, 3, 7, 8, 31, 32, 34, 65, 96, 160]))
    m = Model(1, n_kv * int(rng.integers(1, 10)), n_kv, dim, 24, 16, window=int(rng.choice([0, 0, 50])))
    m = dataclasses.replace(m, wpe=m.dim < 2)
    fmt = list(FORMATS.values())[seed % len(FORMATS)]
    kv = ("float32", "bfloat16")[seed // len(FORMATS) % 2]
    ref, native = pair(m, fmt, kv, 2)
    for _ in range(5):
        chunks = [
            Chunk(i, tokens(int(rng.choice([1, 2, 17, 60])), seed=int(rng.integers(99)))) for i in range(2)
        ]
        for a, b in zip(ref.step(chunks), native.step(chunks), strict=True):
            assert np.abs(a - b).max() < (1e-4 if kv == "float32" else 0.06) * max(
                1.0, float(np.abs(a).max())
            )
        copied(ref, native)
        i = int(rng.integers(2))
        for d in (ref, native):
            seal(d, i)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dim", [1, 7, 32, 45])
def test_codes_lie_as_kernels_read_them(bits: int, dim: int) -> None:
    """Word by word, as kv/layout.py says."""
    ops, per = Ops("float32"), 32 // bits
    code = np.random.default_rng(0).integers(0, 1 << bits, (3, 16, dim))
    k = _codes.lay_keys(code, bits, ops)
    words = np.ascontiguousarray(k).view("<u4")[..., 0]  # (page, word, row)
    v = _codes.lay_values(code, bits, ops)
    for c in range(dim):
        shift = c % per // 2 * bits + c % 2 * 16
        assert (words[:, c // per] >> shift & (1 << bits) - 1 == code[..., c]).all()
        byte = v[..., c // per * 4 + c % 4]
        assert (byte >> (c % per // 4 * bits) & (1 << bits) - 1 == code[..., c]).all()
    assert (_codes.read_keys(k, bits, dim, ops) == code).all()
    assert (_codes.read_values(v, bits, dim, ops) == code).all()


@dataclasses.dataclass(frozen=True)
class Elsewhere(Int4):
    """Says that its codes are not where they are."""

    @property
    def codes(self) -> tuple[Codes, Codes]:
        return Codes(2, 64), Codes(4, 64)

    def fields(self, page: int, dim: int) -> Any:
        return Int4().fields(page, dim)


def test_a_wrong_description_is_refused() -> None:
    bound = build(Model())
    with pytest.raises(UnsupportedError, match="do not lie as"):
        NativeRunner(bound, store_for(bound, Ops("float32"), "bfloat16", Elsewhere()))


# bits, group, offset, channels, turn, levels, rank, spikes, kept, salient
@pytest.mark.parametrize(("keys", "why"), [
    ([4, 0, 1, 0, 0, 0, 3, 0, 32, 0], "low rank"), ([4, 0, 1, 0, 0, 0, 0, -1, 32, 0], "spikes"),
    ([4, 0, 1, 0, 1, 0, 1, 0, 32, 0], "beside numbers"), ([4, 0, 1, 0, 0, 0, 0, 0, 31, 0], "all channels"),
    ([16, 0, 0, 0, 0, 0, 0, 0, 33, 0], "16 bits"), ([16, 0, 1, 0, 0, 0, 0, 0, 20, 0], "16 bits"),
    ([4, 0, 1, 0, 0, 0, 1, 0, 32, 0], "holds"), ([4, 0, 1, 0, 0, 0, 0, 9, 32, 0], "holds"),
    ([4, 0, 1, 0, 0, 0, 0, 0, 32, 3], "more bits"), ([2, 0, 1, 0, 0, 0, 0, 0, 32, 16], "more bits"),
])  # fmt: skip
def test_descriptions_that_do_not_fit_are_refused(keys: list[int], why: str) -> None:
    exe = _native.Executor("", 1, 5, 1, 1, 1, 32, [32, 32])
    values = [16, 0, 0, 0, 0, 0, 0, 0, 32, 0]

    def zones(of_keys: list[int]) -> None:
        tables: list[list[float]] = [[], []]
        sealed, at = 256 + 1024, [0, 256, 1152, 0]  # 128 bytes for what keys have beside codes
        exe.set_zones(1, 2048, [0, 1024, 0, 0], 3, sealed, at, [of_keys, values], tables, [0], [0])

    zones([4, 0, 1, 0, 0, 0, 0, 0, 32, 0])
    with pytest.raises(ValueError, match=why):
        zones(keys)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(("fmt", "share"), [
    (Int4(), 0.3), (Gear(2), 1 / 3), (Gear(), 0.46), (Think(), 0.83), (Think(0.5), 0.77),
    (Mikv(), 0.22), (Mikv(balance=False), 0.19), (ZipCache(2, 10), 0.33),
])  # fmt: skip
def test_bytes_of_the_arena(fmt: Any, share: float, dim: int) -> None:
    """Of what bfloat16 takes, factors, places and all else included."""
    bound = build(Model(dim=dim, layers=1))
    store = store_for(bound, Ops("float32"), "bfloat16", fmt)
    kv = store.new()
    store.reserve(kv, 640)
    store.extend(kv, range(640))
    full = store.held
    store.seal(kv)
    assert store.held <= share * full
