"""What queries see of stored rows: loops over keys, the store's own way and the native one agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pronghorn.kv.look import Look, by_ops
from pronghorn.methods.kvfmt.int8 import Int8
from pronghorn.ops.cpu import _native
from pronghorn.ops.ref import Ops
from pronghorn.run.native import NativeRunner
from pronghorn.types import BIAS, KVPlan
from tests.native_tapes import Chunk, Driver, Model, build, store_for, tokens

MODELS = {
    "llama": Model(),
    "mqa": Model(heads=5, n_kv=1, dim=24, width=56),
    "wide": Model(heads=6, n_kv=2, dim=80, width=64),
    "window": Model(layers=2, window=37, heads=3, n_kv=3, dim=20),
    "softcap": Model(softcap=3.0, scale=2.5),
}
STORES: dict[str, dict[str, Any]] = {
    "fp32": {}, "bf16": {"kv": "bfloat16"}, "int8": {"fmt": Int8(), "kv": "bfloat16"},
}  # fmt: skip
N = 150


def ragged(m: Model, bias: bool = False, **store: Any) -> Driver:
    """A sequence whose heads keep other rows each, some sealed behind pages that are not full, some open."""
    bound = build(m, taps=("q.new",))
    d = Driver(NativeRunner(bound, store_for(bound, Ops("float32"), rows="head", **store), threads=2), 1)
    rng = np.random.default_rng(0)
    d.step([Chunk(0, tokens(N))])
    groups = range(len(d.runner.store.sealed_layout.groups))
    keep = {g: np.sort(rng.permutation(N)[: 60 + 9 * g]).astype(np.int32) for g in groups}
    notes = {BIAS: rng.normal(size=(m.layers, m.n_kv, N))} if bias else {}
    d.runner.store.seal(d.kvs[0], KVPlan(keep, notes=notes))
    d.step([Chunk(0, tokens(5, seed=1))])
    d.runner.store.seal(d.kvs[0])
    d.step([Chunk(0, tokens(21, seed=2))])
    return d


def asked(m: Model, r: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    q = rng.normal(size=(m.heads, r, m.dim)).astype(np.float32)
    return q, np.sort(rng.integers(0, N + 26, r)).astype(np.int32)


def loops(d: Driver, m: Model, layer: int, q: Any, pos: Any, what: Look) -> Any:
    view = d.runner.store.view(d.kvs[0], N)
    bias = view.note(BIAS)
    out = np.full((m.heads, len(pos), view.n), -np.inf)
    for h in range(m.heads):
        kv = h // (m.heads // m.n_kv)
        for i, at in enumerate(pos):
            for j in np.flatnonzero(view.valid[layer, kv]):
                where = view.pos[layer, kv, j]
                if where <= at and (not view.window[layer] or where > at - view.window[layer]):
                    s = float(view.k[layer, kv, j].astype(np.float64) @ q[h, i]) * view.scale[layer]
                    cap = view.softcap[layer]
                    s = cap * np.tanh(s / cap) if cap else s
                    out[h, i, j] = s + bias[layer, kv, j]
    if what is Look.LOGITS:
        return out
    top = out.max(axis=-1, keepdims=True)
    e = np.exp(out - np.where(np.isfinite(top), top, 0))
    total = e.sum(axis=-1, keepdims=True)
    w = e / np.where(total > 0, total, 1)
    return w.sum(axis=1) if what is Look.SUMS else w


def close(a: Any, b: Any, tol: float) -> None:
    assert a.shape == b.shape
    seen = np.isfinite(b)
    assert (np.isfinite(a) == seen).all()
    assert np.abs(a[seen] - b[seen]).max() < tol


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("name", MODELS)
def test_native_is_the_reference(name: str, store: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRONGHORN_ISA", isa)
    m = MODELS[name]
    d = ragged(m, bias=store != "fp32", **STORES[store])
    for r in (1, 7, 40):
        q, pos = asked(m, r)
        for layer in range(m.layers):
            for what in Look:
                got = d.runner.look(d.kvs[0], layer, q, pos, what)
                close(got, by_ops(d.kvs[0], layer, q, pos, what), 1e-5 * (r if what is Look.SUMS else 1))


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_is_what_loops_give(name: str) -> None:
    m = MODELS[name]
    d = ragged(m, bias=True)
    q, pos = asked(m, 9)
    assert pos[0] < N - 1, "some query must be before some row"
    for what in Look:
        close(by_ops(d.kvs[0], 0, q, pos, what), loops(d, m, 0, q, pos, what), 1e-5)


def test_a_row_does_not_depend_on_its_company() -> None:
    """Bit by bit: rows one by one, and sums in their order."""
    m = MODELS["wide"]
    d = ragged(m, kv="bfloat16")
    q, pos = asked(m, 60)
    every = d.runner.look(d.kvs[0], 1, q, pos, Look.WEIGHTS)
    total = np.zeros_like(every[:, 0])
    for i in range(60):
        alone = d.runner.look(d.kvs[0], 1, q[:, i : i + 1], pos[i : i + 1], Look.WEIGHTS)
        assert np.array_equal(alone[:, 0], every[:, i])
        total += every[:, i]
    assert np.array_equal(d.runner.look(d.kvs[0], 1, q, pos, Look.SUMS), total)


def test_what_is_out_of_range_is_refused() -> None:
    m = MODELS["llama"]
    d = ragged(m)
    kv, (q, pos) = d.kvs[0], asked(m, 3)
    out = np.zeros((m.heads, kv.n_rows), np.float32)
    for layer, x, at, what, to in [
        (9, q, pos, 0, out), (-1, q, pos, 0, out), (0, q[:1], pos, 0, out), (0, q, pos[:1], 0, out),
        (0, q, pos, 3, out), (0, q, pos, 0, out[:, :5].copy()), (0, q, pos, 1, out),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match="exist|queries|room"):
            d.runner.exe.look(kv, layer, np.ascontiguousarray(x), at, 1.0, 0.0, 0, what, to)


def test_a_sequence_without_rows_is_seen_by_nobody() -> None:
    m = MODELS["llama"]
    d = ragged(m)
    kv, (q, pos) = d.runner.store.new(), asked(m, 3)
    assert d.runner.look(kv, 0, q, pos, Look.SUMS).shape == (m.heads, 0)
    assert by_ops(kv, 0, q, pos, Look.WEIGHTS).shape == (m.heads, 3, 0)
