"""Every policy: identity at full budget, the masked dense model at a tight one, and memory really freed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE
from pronghorn.kv.view import KVView
from pronghorn.llm import LLM
from pronghorn.methods.kv.snapkv import SnapKv
from pronghorn.methods.kv.streaming_llm import StreamingLlm
from pronghorn.methods.kvfmt.int8 import Int8
from pronghorn.ops.ref import Ops
from pronghorn.types import FOREVER, Guarantee, KVPlan, Traits
from tests.conformance import _find
from tests.conformance._oracle import Oracle
from tests.conformance._rig import N_VOCAB, Small, small


@dataclass(frozen=True)
class RandomRows:
    """The control: `budget` rows of each head by lot."""

    budget: int = 24
    every: int = 16
    rows: str = "head"
    moves: bool = False

    @property
    def traits(self) -> Traits:
        return Traits(Guarantee.APPROXIMATE, rows=self.rows, drops=True, moves=self.moves)

    def barrier(self, n_prompt: int, length: int) -> int:
        return (length // self.every + 1) * self.every

    def plan(self, view: KVView, taps: dict[str, Any]) -> KVPlan | None:
        shape = (view.n_layers, view.n_kv, view.n)
        return view.keep_top(np.random.default_rng(view.length).random(shape), self.budget)


NAMES = _find.names("kv")
CONTROLS = {
    "random-head": RandomRows(),
    "random-layer": RandomRows(rows="layer"),
    "random-seq": RandomRows(rows="seq"),
    "random-moving": RandomRows(rows="seq", moves=True),
}
TIGHT = {**{n: _find.tight("kv", n) for n in NAMES}, **CONTROLS}
IDS = np.random.default_rng(5).integers(0, N_VOCAB, 110).tolist()
N_PROMPT = 75


def plain() -> Any:
    return Small(small()).feed(IDS, N_PROMPT)


@pytest.mark.parametrize("name", TIGHT)
def test_barriers_are_a_fixed_set_of_lengths(name: str) -> None:
    """Asked anywhere between two barriers, a policy names the same next one."""
    policy = TIGHT[name]
    for n_prompt in (1, 16, 33, 75):
        length = 0
        while length < 200:
            at = policy.barrier(n_prompt, length)
            assert at > length
            assert {policy.barrier(n_prompt, x) for x in range(length, min(at, 200))} == {at}
            length = at


@pytest.mark.parametrize("name", NAMES)
def test_full_budget_is_the_identity(name: str) -> None:
    got = Small(small(), _find.full("kv", name))
    assert np.abs(got.feed(IDS, N_PROMPT) - plain()).max() < 1e-9
    assert got.kv.n_sealed + got.kv.n_open == len(IDS)


@pytest.mark.parametrize("name", TIGHT)
def test_a_tight_budget_drops_rows_and_shows(name: str) -> None:
    """Without this the identity and the oracle would pass for a policy that does nothing."""
    got = Small(small(), TIGHT[name])
    logits = got.feed(IDS, N_PROMPT)
    assert got.kv.dropped
    assert np.abs(logits - plain()).max() > 1e-3


@pytest.mark.parametrize("name", TIGHT)
@pytest.mark.parametrize("chunk", [64, 5])
def test_equals_dense_attention_under_a_mask(name: str, chunk: int) -> None:
    got = Small(small(), TIGHT[name])
    logits = got.feed(IDS, N_PROMPT, chunk)
    moves = got.policy.traits.moves
    oracle = Oracle(got.bound, got.store.sealed_layout.groups, got.plans, moves)
    want = oracle.logits(IDS)
    # angles are float32 in models, so a key turned twice is off by a few of their last bits
    assert np.abs(logits - want).max() < (1e-4 if moves else 1e-9)
    for g, members in enumerate(got.store.sealed_layout.groups):
        for layer, head in members:
            assert oracle.alive[layer, head].sum() == got.kv.sealed[g].n + got.kv.n_open


@pytest.mark.parametrize("name", TIGHT)
def test_plans_do_not_depend_on_the_chunks(name: str) -> None:
    def plans(chunk: int) -> Any:
        run = Small(small(), TIGHT[name], ops=Ops("float32"))
        run.feed(IDS, N_PROMPT, chunk)
        return [(n, p and {g: k.tolist() for g, k in p.keep.items()}) for n, p in run.plans]

    assert plans(64) == plans(7) == plans(1)


@pytest.mark.parametrize("name", TIGHT)
@pytest.mark.parametrize("fmt", [None, Int8()], ids=["exact", "int8"])
def test_bytes_are_those_of_the_rows_kept(name: str, fmt: Any) -> None:
    got, full = Small(small(), TIGHT[name], fmt), Small(small(), None, fmt)
    got.feed(IDS[:N_PROMPT], N_PROMPT)
    full.feed(IDS[:N_PROMPT], N_PROMPT)
    full.store.seal(full.kv)
    store = got.store
    pages = sum(-(-s.n // PAGE) for s in got.kv.sealed)
    assert store.sealed_arena.held == pages * store.sealed_layout.block
    assert store.open_arena.held == -(-got.kv.n_open // PAGE) * store.open_layout.block
    held = store.sealed_arena.held
    assert held < 0.6 * full.store.sealed_arena.held
    store.free(got.kv)
    assert store.held == 0


@pytest.mark.parametrize("name", TIGHT)
def test_a_fork_keeps_its_rows(name: str) -> None:
    """Dropping is done on a copy: a sequence that shares pages still has all of them."""
    run = Small(small(), TIGHT[name])
    run.feed(IDS[:15], N_PROMPT)
    run.store.seal(run.kv)
    fork = run.store.fork(run.kv)
    before = [run.ops.numpy(a).copy() for a in run.store.sealed_rows(fork, 0, 0)]
    run.feed(IDS[15:], N_PROMPT)
    assert run.kv.dropped
    after = [run.ops.numpy(a) for a in run.store.sealed_rows(fork, 0, 0)]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))
    assert not fork.dropped


@pytest.mark.parametrize("name", NAMES)
def test_drops_is_declared(name: str) -> None:
    assert _find.tight("kv", name).traits.drops
    assert _find.tight("kv", name).traits.guarantee is Guarantee.APPROXIMATE


# ------------------------------------------------------------------------------------- snapkv


def naive_snapkv(k: Any, q: Any, budget: int, kernel: int) -> list[int]:
    """Rows kept by one KV head: k (n, dim), q (g, w, dim), one row and one query at a time."""
    n, w = len(k), q.shape[1]
    total = np.zeros(n - w)
    for head in q:
        seen = np.zeros(n)
        for i in range(w):
            s = np.array([head[i] @ k[j] / np.sqrt(k.shape[1]) for j in range(n - w + i + 1)])
            e = np.exp(s - s.max())
            seen[: len(s)] += e / e.sum()
        for j in range(n - w):
            near = [seen[x] for x in range(j - kernel // 2, j + kernel // 2 + 1) if 0 <= x < n - w]
            total[j] += sum(near) / kernel / len(q)
    best = sorted(range(n - w), key=lambda j: (-float(f"{total[j]:.3e}"), j))[: budget - w]
    return sorted(best) + list(range(n - w, n))


@pytest.mark.parametrize(("budget", "window", "kernel"), [(24, 8, 5), (20, 4, 3), (33, 16, 1)])
def test_snapkv_against_loops(budget: int, window: int, kernel: int) -> None:
    seen: dict[str, Any] = {}

    @dataclass(frozen=True)
    class Spy(SnapKv):
        def plan(self, view: KVView, taps: dict[str, Any]) -> KVPlan | None:
            seen.update(k=view.k.copy(), q=taps["q"])
            return super().plan(view, taps)

    run = Small(small(), Spy(budget, window, kernel))
    run.feed(IDS[:N_PROMPT], N_PROMPT, 10)
    ((length, plan),) = run.plans
    assert length == N_PROMPT
    assert plan is not None
    g = run.bound.n_heads // run.bound.n_kv
    for layer in range(run.bound.n_layers):
        for head in range(run.bound.n_kv):
            q = seen["q"][layer, g * head : g * head + g].astype(np.float64)
            want = naive_snapkv(seen["k"][layer, head], q, budget, kernel)
            group, _ = run.store.group_of[layer, head]
            assert plan.keep[group].tolist() == want


def test_snapkv_keeps_more_attention_than_chance() -> None:
    """R4, on what a random model has: the window's attention to the rows kept."""

    def mass(policy: Any) -> float:
        run = Small(small(gain=4.0), policy)
        dense = Small(small(gain=4.0))
        run.feed(IDS[:N_PROMPT], N_PROMPT)
        dense.feed(IDS[: N_PROMPT - 1], N_PROMPT)
        q = dense.step(IDS[N_PROMPT - 1 : N_PROMPT], N_PROMPT).taps["q"][:, 0]
        dense.store.seal(dense.kv)
        k = dense.store.view(dense.kv, N_PROMPT).k
        total = []
        for layer in range(run.bound.n_layers):
            for head in range(run.bound.n_heads):
                s = k[layer, head // 2] @ q[layer, head] / np.sqrt(k.shape[-1])
                p = np.exp(s - s.max())
                group, _ = run.store.group_of[layer, head // 2]
                total.append(p[run.plans[-1][1].keep[group]].sum() / p.sum())
        return float(np.mean(total))

    control = RandomRows(budget=24, every=N_PROMPT)
    assert mass(SnapKv(24, 8)) > mass(control) + 0.3


def test_snapkv_asks_for_its_window() -> None:
    assert SnapKv(window=16).traits.taps == ("q.last16",)
    assert SnapKv().barrier(100, 99) == 100
    assert SnapKv().barrier(100, 100) == FOREVER


def test_snapkv_of_a_thousand_rows_holds_what_it_says() -> None:
    """budget=64 on 1,000 prompt tokens: 64 rows of each head, by the allocator."""
    ids = np.random.default_rng(0).integers(0, N_VOCAB, 1000).tolist()
    run = Small(small(), SnapKv(budget=64), ops=Ops("float32"))
    run.feed(ids, 1000, 250)
    heads = run.bound.n_layers * run.bound.n_kv
    one_page = PAGE * run.bound.head_dim * 4 * 2
    assert run.store.held == heads * (64 // PAGE) * one_page
    assert run.store.full_bytes(1000) == heads * -(-1000 // PAGE) * one_page


@pytest.mark.parametrize("bad", [{"window": 0}, {"budget": 32}, {"kernel": 4}])
def test_snapkv_ranges(bad: dict[str, int]) -> None:
    with pytest.raises(MethodError, match=next(iter(bad))):
        SnapKv(**bad)


# ------------------------------------------------------------------------------- streaming-llm


def test_streaming_llm_positions_stay_inside_the_window() -> None:
    """Text of any length runs at bounded positions, and sinks and the latest rows are what is left."""
    policy = StreamingLlm(sinks=4, window=20, every=8, prompt_every=32)
    run = Small(small(), policy)
    for i in range(10):
        run.feed(np.random.default_rng(i).integers(0, N_VOCAB, 30).tolist(), 50)
        assert run.kv.next_pos <= 4 + 20 + 32
    assert run.kv.length == 300
    view = run.store.view(run.kv, 50)
    assert (view.pos == np.arange(view.n)).all()
    oracle = Oracle(run.bound, run.store.sealed_layout.groups, run.plans, True)
    oracle.logits([t for i in range(10) for t in np.random.default_rng(i).integers(0, N_VOCAB, 30)])
    alive = np.flatnonzero(oracle.alive[0, 0])
    assert alive[:4].tolist() == [0, 1, 2, 3]
    assert (np.diff(alive[4:]) == 1).all()
    assert alive[-1] == 299


@pytest.mark.parametrize("bad", [{"sinks": -1}, {"window": 0}, {"every": 0}, {"prompt_every": 0}])
def test_streaming_llm_ranges(bad: dict[str, int]) -> None:
    with pytest.raises(MethodError, match=next(iter(bad))):
        StreamingLlm(**bad)


# ------------------------------------------------------------------- on a model that looks things up

WHO = ["The old miller", "A small fox", "The tailor", "The little girl", "The grey wolf", "An old woman"]
DID = [
    "walked slowly down to the river",
    "looked out of the window at the snow",
    "found a golden ring in the garden",
    "sat by the fire and told a story",
    "went into the dark forest to gather wood",
    "slept under a tall tree all day",
]


@dataclass(frozen=True)
class RandomPrompt(RandomRows):
    """The control of a policy that acts at the end of the prompt."""

    slot = "kv"

    def barrier(self, n_prompt: int, length: int) -> int:
        return n_prompt if length < n_prompt else FOREVER


def numbers_found(use: list[Any]) -> int:
    """Of 20 numbers, each hidden in about 370 tokens and asked for at the end."""
    model = LLM(use=use, backend="ref", threads=1)
    r, found = random.Random(1), 0
    for _ in range(20):
        lines = [f"{r.choice(WHO)} {r.choice(DID)}." for _ in range(26)]
        name, number = r.choice(["Anna", "Otto", "Maria", "Hugo"]), str(r.randrange(10000, 99999))
        lines.insert(r.randrange(3, 23), f"The secret number of {name} is {number}.")
        text = " ".join(lines) + f"\n\nWhat is the secret number of {name}?"
        found += number in model.chat([{"role": "user", "content": text}], max_tokens=12).text
    model.close()
    return found


@pytest.mark.slow
def test_snapkv_keeps_what_is_asked_for_and_chance_does_not() -> None:
    """R4 at about a sixth of the rows: at most 4 of 20 lost against dense; the control loses 6 (30
    points) or more, else the task would be too easy."""
    dense = numbers_found([])
    assert dense >= 17
    assert numbers_found([SnapKv(budget=64, window=8, kernel=9)]) >= dense - 4
    assert numbers_found([RandomPrompt(budget=64)]) <= dense - 6
