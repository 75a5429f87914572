"""KV formats that go by queries: who is told what, what it is good for, and who is served such rows."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pronghorn import memory
from pronghorn.bench.kv_compare import graded
from pronghorn.bench.kv_run import Reading, hold
from pronghorn.bench.kv_tasks import make
from pronghorn.kv.layout import PAGE
from pronghorn.kv.store import SeqKV, Store
from pronghorn.kv.tiers import NoSwap
from pronghorn.llm import LLM, make_options
from pronghorn.methods.kv.h2o import H2O
from pronghorn.methods.kv.snapkv import SnapKv
from pronghorn.methods.kvfmt.mikv import Mikv
from pronghorn.methods.kvfmt.think import Think
from pronghorn.methods.kvfmt.zipcache import ZipCache, probes
from pronghorn.ops.ref import Ops
from tests.lookups import MODEL

OPS = Ops("float32")
Packs = list[tuple[str, int, str]]  # how, pages, their bytes' digest


def model(*use: str) -> LLM:
    return LLM(MODEL, use=use, threads=1, defaults=("match", "fcfs"))


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> Packs:
    """What formats packed, by which of their methods."""
    seen: Packs = []
    for cls in (Think, Mikv, ZipCache):
        for how in ("pack", "pack_by"):
            monkeypatch.setattr(cls, how, _noting(getattr(cls, how), how, seen))
    return seen


def _noting(method: Any, how: str, seen: Packs) -> Any:
    def call(self: Any, *args: Any) -> Any:
        before = len(seen)
        out = method(self, *args)
        del seen[before:]  # one calls the other
        seen.append((how, len(args[0]), hashlib.md5(b"".join(a.tobytes() for a in out.values())).hexdigest()))
        return out

    return call


def said_and_swapped(fmt: Any, dim: int) -> tuple[float, float]:
    """Errors of attention's outputs over 40 pages, where a few rows get most weight: by what queries say, and
    by its opposite. Of random heads."""
    r = np.random.default_rng(dim)
    k, v = (r.standard_normal((40, PAGE, dim)).astype(np.float32) for _ in range(2))
    flat = k.reshape(-1, dim)
    q = flat[::13] * 1.2 + r.standard_normal((50, dim))[: len(flat[::13])] * 0.3

    def weights(keys: Any) -> Any:
        s = q @ keys.reshape(-1, dim).T / dim**0.5
        s = np.exp(s - s.max(axis=1, keepdims=True))
        return s / s.sum(axis=1, keepdims=True)

    mass = weights(k).sum(axis=0).reshape(40, PAGE)
    channels = np.abs(q).max(axis=0)

    def error(said: Any) -> float:
        out = fmt.unpack(fmt.pack_by(k, v, said, channels, OPS), dim, OPS)
        got = weights(out[0]) @ out[1].reshape(-1, dim)
        want = weights(k) @ v.reshape(-1, dim)
        return float(np.linalg.norm(got - want) / np.linalg.norm(want))

    return error(mass), error(mass.max() - mass)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("fmt", [Mikv(), Mikv(balance=False), ZipCache(2, 10)], ids=str)
def test_bits_go_where_attention_goes(fmt: Any, dim: int) -> None:
    told, swapped = said_and_swapped(fmt, dim)
    assert told < 0.75 * swapped


def test_balance_helps_scores() -> None:
    """A channel of large keys that queries hardly use does not cost the others their precision."""
    r = np.random.default_rng(1)
    k, q = (r.standard_normal((n, 64)).astype(np.float32) for n in (640, 50))
    k[:, :4] *= 20
    q[:, :4] /= 20
    k = k.reshape(40, PAGE, 64)

    def error(fmt: Mikv) -> float:
        said, channels = np.zeros((40, PAGE)), np.abs(q).max(axis=0)
        got = fmt.unpack(fmt.pack_by(k, k, said, channels, OPS), 64, OPS)[0]
        return float(np.linalg.norm((got - k).reshape(-1, 64) @ q.T))

    assert error(Mikv()) < 0.3 * error(Mikv(balance=False))


def test_think_weighs_channels_by_queries() -> None:
    r = np.random.default_rng(2)
    k = r.standard_normal((5, PAGE, 64)).astype(np.float32)
    q = r.standard_normal((32, 64)) * np.exp(r.standard_normal(64))

    def error(channels: Any) -> float:
        got = Think().unpack(Think().pack_by(k, k, np.zeros((5, PAGE)), channels, OPS), 64, OPS)[0]
        return float(np.linalg.norm((got - k) @ q.T))

    assert error(np.linalg.norm(q, axis=0)) < 0.6 * error(np.ones(64))
    none = Think().pack(k, k, OPS)
    assert all((none[n] == a).all() for n, a in Think().pack_by(k, k, k, np.zeros(64), OPS).items())


@pytest.mark.parametrize("fmt", [Mikv(), ZipCache(2, 10), Think()], ids=str)
def test_torch_packs_the_same_bytes(fmt: Any) -> None:
    torch = pytest.importorskip("torch")
    r = np.random.default_rng(4)
    given = [r.standard_normal((5, PAGE, 40)).astype(np.float32) for _ in range(2)] + [
        r.random((5, PAGE)),
        r.random(40),
    ]
    other = Ops("float32", torch)
    a, b = fmt.pack_by(*given, OPS), fmt.pack_by(*map(other.array, given), other)
    for f in fmt.fields(PAGE, 40):
        wide = "float32" if f.dtype == "bfloat16" else f.dtype
        assert (a[f.name].astype(wide) == other.numpy(other.to(b[f.name], wide))).all()
    for x, y in zip(fmt.unpack(a, 40, OPS), fmt.unpack(b, 40, other), strict=True):
        assert (x == other.numpy(y)).all()


@pytest.mark.parametrize("policy", ["h2o", "snapkv"])
def test_mikv_answers_what_eviction_forgot(policy: str) -> None:
    """A second question, which comes after rows were chosen for the first, with more bytes for eviction."""
    length = 500
    grid = {"h2o": ",every=16,prompt_every=64", "snapkv": ""}[policy]
    right, held = [], []
    for use in ("mikv", f"{policy}:budget={round(0.26 * length)}{grid}"):
        llm = model(use)
        task = make("kv", llm.tokenizer, length, 16, Path())
        heard = hold(llm, [talk for (talk,) in task.items], Reading())
        right.append(np.mean(graded(llm.tokenizer, task, heard)["kv-2q"]))
        held.append(sum(h.held for h in heard))
        llm.close()
    assert held[0] <= held[1] <= 1.1 * held[0]
    assert right[0] >= 0.9
    assert right[0] - right[1] >= 0.1


def test_every_query_is_heard_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of rows sums to the queries that said it; of what was sealed by earlier barriers too."""
    heard: list[tuple[Any, Any]] = []
    look = Mikv.look

    def spy(self: Mikv, view: Any, taps: Any) -> Any:
        said = look(self, view, taps)
        heard.append((said.rows.sum(axis=-1), taps["q_at"]))
        return said

    monkeypatch.setattr(Mikv, "look", spy)
    monkeypatch.setattr(memory, "PROMPT_GRID", 128)
    ids = np.random.default_rng(0).integers(5, 300, 300).tolist()
    llm = model("mikv", "prompt-lookup")
    llm._run([ids], make_options({"max_tokens": 100, "ignore_eos": True}))
    llm.close()
    for total, at in heard:
        assert np.allclose(total, len(at), rtol=1e-3)
    assert np.array_equal(np.concatenate([at for _, at in heard]), np.arange(384)), "drafts that stand too"
    assert [len(at) for _, at in heard] == [128, 128, 44, 20, 64]


@pytest.mark.parametrize(("cls", "policy", "shown"), [
    (SnapKv, "snapkv:budget=64,window=8", [(292, 300)]),
    (H2O, "h2o:budget=64,every=192,prompt_every=192", [(0, 192), (192, 300), (300, 384)]),
])  # fmt: skip
def test_policies_are_shown_what_they_ask_for_beside_a_format(
    cls: Any, policy: str, shown: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No less where the format is told more often, and no more where it asks for more."""
    seen: list[Any] = []
    plan = cls.plan

    def spy(self: Any, view: Any, taps: Any) -> Any:
        seen.append(taps["q_at"])
        return plan(self, view, taps)

    monkeypatch.setattr(cls, "plan", spy)
    ids = np.random.default_rng(5).integers(5, 300, 300).tolist()
    llm = model("mikv", policy)
    seq = llm._submit(ids, make_options({"max_tokens": 100, "ignore_eos": True}))
    while not seq.done:
        llm._step()
        held = sum(len(pos) for s in llm.engine.running if s.n_new > 1 for _, pos, _ in s.queries)
        assert held <= (192 if cls is H2O else 64)
    llm.close()
    assert [(int(at[0]), int(at[-1]) + 1, len(at)) for at in seen] == [(a, b, b - a) for a, b in shown]


@pytest.mark.parametrize("length", [500, 520])  # with 520, the last barrier inside is among the last 32
def test_shared_rows_know_no_queries(length: int, packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that takes over another's rows packs what it would have packed itself."""
    monkeypatch.setattr(memory, "PROMPT_GRID", 256)
    ids = np.random.default_rng(1).integers(5, 300, 600).tolist()
    first, then = ids[:length], [*ids[: length - 60], *ids[540:600]]

    def packed(*prompts: Any) -> Packs:
        llm = model("think", "prefix")
        for p in prompts:
            packs.clear()
            llm._run([p], make_options({"max_tokens": 70, "ignore_eos": True}))
        llm.close()
        return list(packs)

    cold, warm = packed(then), packed(first, then)
    heads = 8  # layers times KV heads
    assert len(warm) < len(cold)
    assert cold[-len(warm) :] == warm
    by = ["pack_by" if how == "pack_by" else "" for how, _, _ in cold[::heads]]
    assert by == [*[""] * (length // 256), "pack_by", ""], "at the prompt's end, of all pages behind a grid's"


def test_rows_that_queries_chose_are_not_shared() -> None:
    for use, private in (("mikv", True), ("zipcache:bits=2,salient=10", True), ("zipcache", False),
                         ("think", False), ("think:window=0", False)):  # fmt: skip
        llm = model(use, "prefix")
        assert llm.engine.methods.private == private, use
        llm.close()


class Losing(NoSwap):
    """A tier that loses what it takes."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def seconds(self, size: int) -> float:
        return -1.0

    def out(self, kv: SeqKV) -> Any:
        self.store.free(kv)
        return 1

    def back(self, ticket: Any) -> SeqKV:
        return self.store.new()


@pytest.mark.parametrize("use", ["mikv", "zipcache:bits=2,salient=10", "think"])
def test_preempted_rows_are_packed_again_alike(use: str, packs: Packs) -> None:
    ids = np.random.default_rng(3).integers(5, 300, 200).tolist()

    def packed(preempt: bool, lose: bool = False) -> set[str]:
        packs.clear()
        llm = model(use)
        engine = llm.engine
        if lose:
            engine.memory.swap = Losing(engine.store)
        run = llm._submit(ids, make_options({"max_tokens": 120, "ignore_eos": True}))
        while not run.done:
            llm._step()
            seq = engine.running[0] if engine.running else None
            if preempt and seq is not None and seq.n_new == 90 and not seq.counts.preempted:
                engine.memory.give_up(seq, engine.cost)
                engine.running.remove(seq)
                engine.waiting.insert(0, seq)
        llm.close()
        assert use == "think" or all(how == "pack_by" for how, _, _ in packs)
        return {digest for _, _, digest in packs}

    assert packed(True) == packed(True, lose=True) == packed(False)


def test_probes_are_the_last_and_some_others() -> None:
    for n in (1, 2, 64, 500):
        at = probes(np.arange(100, 100 + n, dtype=np.int32))
        few = max(1, round(0.05 * n))
        assert (at[-few:] == np.arange(n - few, n)).all()
        assert len(at) == len(set(at.tolist())) == min(n, 2 * few)
