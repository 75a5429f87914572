"""Policies whose scores are made of attention or of keys and values, held against whole matrices of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pronghorn import rng
from pronghorn.bench.lookups import CONTENT
from pronghorn.errors import MethodError
from pronghorn.kv.view import KVView
from pronghorn.llm import LLM
from pronghorn.methods.kv.adakv import AdaKv
from pronghorn.methods.kv.critic import Critic
from pronghorn.methods.kv.expected_attention import ExpectedAttention
from pronghorn.methods.kv.h2o import H2O
from pronghorn.methods.kv.keyformer import Keyformer
from pronghorn.methods.kv.knorm import Knorm
from pronghorn.methods.kv.random import Random
from pronghorn.methods.kv.scissorhands import Scissorhands
from pronghorn.seq import Request
from pronghorn.types import FOREVER, KVPlan
from tests.conformance._oracle import _rotated
from tests.conformance._rig import N_VOCAB, Small, small
from tests.conformance.test_kvscores import IDS, N_PROMPT, digits, plans, watched
from tests.engines import engine, prompt
from tests.lookups import MODEL, tasks

GROUP = 2  # query heads of a KV head in the small model
TIGHT = {"every": 16, "prompt_every": 16}


class Whole:
    """Everything by position: x (L, heads, N, N) scores of attention, -inf where a row was gone or later;
    q (L, heads, N, dim); k, v (L, KV heads, N, dim); held (L, KV heads, N) at this barrier."""

    def __init__(self, n: int = len(IDS), layers: int = 3, heads: int = 4, dim: int = 8) -> None:
        self.x = np.full((layers, heads, n, n), -np.inf)
        self.q = np.zeros((layers, heads, n, dim))
        self.k, self.v = np.zeros((2, layers, heads // GROUP, n, dim))
        self.held = np.zeros((layers, heads // GROUP, n), bool)
        self.length = self.since = 0

    def see(self, view: KVView, taps: dict[str, Any]) -> None:
        self.held[:] = False
        self.since, self.length = self.length, view.length
        for layer, kv in np.ndindex(*self.held.shape[:2]):
            pos = view.pos[layer, kv][view.valid[layer, kv]]
            self.held[layer, kv, pos] = True
            self.k[layer, kv, pos] = view.k[layer, kv][: len(pos)]
            self.v[layer, kv, pos] = view.v[layer, kv][: len(pos)]
            for head in range(GROUP * kv, GROUP * kv + GROUP):
                for i, at in enumerate(taps["q_pos"] if taps else ()):
                    q = taps["q"][layer, head, i].astype(np.float64)
                    self.q[layer, head, at] = q
                    seen = pos[pos <= at]
                    self.x[layer, head, at, seen] = self.k[layer, kv, seen] @ q / np.sqrt(len(q))

    def weights(self, more: Any = 0.0, heat: Any = 1.0) -> Any:
        """(L, heads, N, N), 0 where nothing was seen; the softmax of (x + more) / heat."""
        s = (self.x + more) / heat
        e = np.exp(s - np.maximum(s.max(axis=-1, keepdims=True), -1e300))
        return e / np.maximum(e.sum(axis=-1, keepdims=True), 1e-300)

    def by_kv(self, a: Any) -> Any:
        return a.reshape(a.shape[0], -1, GROUP, *a.shape[2:]).mean(axis=2)


def best(score: Any, always: Any, held: Any, budget: int) -> list[int]:
    """Positions of one head that stay: those of `always`, then the best, of equal ones the earlier."""
    order = sorted(np.flatnonzero(held), key=lambda p: (not always[p], -score[p], p))
    return sorted(int(p) for p in order[:budget])


def check(
    policy: Any,
    score: Callable[[Whole], Any],
    recent: int,
    sinks: int = 0,
    seed: int = 0,
    exact: bool = False,
) -> None:
    """At each barrier every head keeps what `score` (L, H, N) says, rounded unless it is exact, beside its
    first `sinks` and last `recent` rows."""
    whole, barriers = Whole(), 0

    def look(view: KVView, taps: dict[str, Any], plan: KVPlan | None) -> None:
        nonlocal barriers
        whole.see(view, taps)
        want = score(whole) if exact else np.vectorize(digits)(score(whole))
        for g, ((layer, kv),) in enumerate(view.groups):
            held = np.flatnonzero(whole.held[layer, kv])
            stays = np.zeros(len(IDS), bool)
            stays[held[:sinks]] = stays[held[len(held) - recent :]] = True
            rows = plan.keep.get(g, np.arange(len(held))) if plan else np.arange(len(held))
            assert held[rows].tolist() == best(want[layer, kv], stays, whole.held[layer, kv], policy.budget)
            barriers += len(rows) < len(held)

    run = Small(small(), watched(policy, look))
    run.seed = seed
    run.feed(IDS, N_PROMPT, 10)
    assert barriers >= 6, "heads dropped rows"


# ------------------------------------------------------------------------------- knorm


@pytest.mark.parametrize("options", [{"sinks": 0, "recent": 0}, {"sinks": 3, "recent": 5}])
def test_knorm_keeps_the_smallest_keys(options: dict[str, int]) -> None:
    check(Knorm(24, **options, **TIGHT), lambda w: -np.sqrt((w.k**2).sum(axis=-1)), **options)


def test_knorm_leaves_dense_layers_alone() -> None:
    run = Small(small(), Knorm(24, dense_layers=1, **TIGHT))
    run.feed(IDS, N_PROMPT)
    assert [s.n for s in run.kv.sealed] == [96, 96, 24, 24, 24, 24]


# ------------------------------------------------------------------------------- random


def lots(purpose: int, seed: int) -> Any:
    """(L, H, N), from the stream of the first 1,024 positions."""
    return rng.stream(seed, 0, 0, purpose).random((3, 2, 1024))[:, :, : len(IDS)]


@pytest.mark.parametrize("seed", [0, 7, -1, 1 << 70])
def test_random_goes_by_seed_layer_head_and_position(seed: int) -> None:
    check(Random(24, **TIGHT), lambda w: lots(rng.KEEP, seed), 0, seed=seed, exact=True)


def test_random_is_the_same_however_often_rows_are_dropped() -> None:
    """Of all rows so far, the largest lots."""
    often, once = Small(small(), Random(24, **TIGHT)), Small(small(), Random(24, every=96, prompt_every=96))
    for run in (often, once):
        run.feed(IDS[:96], 96)
    assert (often.store.view(often.kv, 96).pos == once.store.view(once.kv, 96).pos).all()


def test_random_draws_evenly_over_a_long_text() -> None:
    """More than one block of positions; the mean position of what stays is the middle."""
    run = Small(small(n_layers=1), Random(256, every=4000, prompt_every=4000))
    ids = np.random.default_rng(0).integers(0, N_VOCAB, 3000).tolist()
    run.feed(ids, 3000, 1000)
    pos = run.store.view(run.kv, 3000).pos
    assert (np.diff(pos, axis=-1) > 0).all()
    assert (pos[0, 0] != pos[0, 1]).any()
    assert abs(pos.mean() - 1500) < 4 * 3000 / math.sqrt(12 * pos.size)
    assert all(np.histogram(pos, bins=10, range=(0, 3000))[0] > 25)


@pytest.mark.parametrize("backend", ["ref64", "native"])
@pytest.mark.parametrize("policy", ["random", "keyformer"])
def test_company_changes_nothing_and_seeds_do(policy: str, backend: str) -> None:
    def run(seeds: list[int], others: int = 0) -> list[list[int]]:
        e = engine(["match", f"{policy}:budget=24,every=16,prompt_every=32"], backend)
        wanted = [Request(prompt(90, 5), 40, 0.0, seed, ignore_eos=True) for seed in seeds]
        company = [Request(prompt(40 + 17 * i, 9 + i), 60, 0.0, i, ignore_eos=True) for i in range(others)]
        found = e.run([*company, *wanted])[others:]
        e.close()
        return [list(s.new) for (s,) in found]

    alone = [run([seed])[0] for seed in (1, 2)]
    assert alone[0] != alone[1]
    assert run([1, 2], others=3) == alone


# ------------------------------------------------------------------------------- scissorhands


@pytest.mark.parametrize("history", [2, 20, 48, 400])
def test_scissorhands_counts_who_found_a_row_unimportant(history: int) -> None:
    half = history // 2

    def score(w: Whole) -> Any:
        weight, some = w.by_kv(w.weights()), np.isfinite(w.x[:, ::GROUP]).sum(axis=-1, keepdims=True)
        less = np.where(weight < 1 / np.maximum(some, 1), 1, 0)
        first = max(0, ((w.length - 1) // half - 1) * half)
        out = np.zeros(w.held.shape)
        for row in range(w.length):
            out[..., row] = -less[:, :, max(first, row) : w.length, row].sum(axis=-1)
        return out

    check(Scissorhands(24, history, recent=6, **TIGHT), score, 6, exact=True)


def test_what_was_important_stays_so() -> None:
    """Scissorhands' premise, on a model that was trained: of the rows that get more than an equal part at
    some step, nine tenths did so in the steps before."""
    found: list[bool] = []

    @dataclass(frozen=True)
    class Watch(Scissorhands):
        slot = "kv"

        def plan(self, view: KVView, taps: dict[str, Any]) -> KVPlan | None:
            n, steps = view.n, 100
            for layer, q in enumerate(taps["q"]):
                w = view.by_kv_head(view.weights(layer, q[:, -steps:], taps["q_pos"][-steps:]))
                much = w * np.arange(n - steps + 1, n + 1)[:, None] > 1
                for t in range(50, steps):
                    now = much[:, t, : n - steps]
                    found.extend(much[:, :t, : n - steps].any(axis=1)[now])
            return None

        def barrier(self, n_prompt: int, length: int) -> int:
            return n_prompt if length < n_prompt else FOREVER

    read(Watch())
    assert np.mean(found) > 0.9


WHO = ["The old miller", "A small fox", "The tailor", "The little girl", "The grey wolf", "An old woman"]
DID = [
    "walked slowly down to the river", "looked out of the window at the snow",
    "found a golden ring in the garden", "sat by the fire and told a story",
    "went into the dark forest to gather wood", "slept under a tall tree all day",
]  # fmt: skip


def read(policy: Any, lines: int = 30) -> None:
    """Let the bundled model read a text, and say one token."""
    r = np.random.default_rng(3)
    text = " ".join(f"{WHO[r.integers(6)]} {DID[r.integers(6)]}." for _ in range(lines))
    model = LLM(use=[policy], backend="ref", threads=1)
    model.generate(text, max_tokens=1)
    model.close()


# ------------------------------------------------------------------------------- keyformer


def test_keyformer_without_noise_is_h2o() -> None:
    quiet = {"noise": 0.0, "rise": 0.0, "recent": 0.5}
    for budget in (24, 25):
        assert plans(Keyformer(budget, **quiet, **TIGHT)) == plans(H2O(budget, **TIGHT))
    assert plans(Keyformer(24, recent=0.5, rise=0.0, **TIGHT)) != plans(H2O(24, **TIGHT))


@pytest.mark.parametrize(
    "options", [{}, {"noise": 0.0, "rise": 0.05}, {"noise": 0.5, "start": 0.5, "end": 0.6}]
)
def test_keyformer_sums_a_noisy_softmax(options: dict[str, float]) -> None:
    policy = Keyformer(24, **options, **TIGHT)
    noise = -policy.noise * np.log(-np.log(lots(rng.KEEP + 1, 5)))
    answered = np.maximum(np.arange(len(IDS)) - N_PROMPT + 1, 0)
    heat = np.minimum(policy.start + policy.rise * answered, policy.end)
    check(
        policy,
        lambda w: w.by_kv(w.weights(noise.repeat(GROUP, axis=1)[:, :, None], heat[:, None]).sum(axis=2)),
        math.ceil(24 * 0.3), seed=5,
    )  # fmt: skip


# ------------------------------------------------------------------------------- critic


def test_critic_without_its_own_terms_is_h2o() -> None:
    bare = Critic(24, focus=0.0, values=False, sinks=0, **TIGHT)
    assert plans(bare) == plans(H2O(24, **TIGHT))
    assert plans(Critic(24, focus=0.0, sinks=0, **TIGHT)) != plans(H2O(24, **TIGHT))


def test_the_chance_of_an_answer_tells_what_the_text_has_not() -> None:
    """What ATLAS asks (see `critic`): the AUROC of the first token's log-probability, for keys that are
    missing against keys that are there. The card wants 0.7."""
    pytest.importorskip("pronghorn.ops.cpu._native")
    there, missing = [], []
    for i, t in enumerate(tasks("kv", 24)):
        there.append(f"{t.text} {t.questions[0][0]}")
        others = sorted(set(CONTENT) - set(t.text.split()))
        missing.append(f"{t.text} ? {others[i % len(others)]}")
    llm = LLM(MODEL, threads=1, defaults=("match", "fcfs"))
    said = llm.generate(there + missing, max_tokens=1, ignore_eos=True, logprobs=True)
    llm.close()
    assert isinstance(said, list)
    surprise = -np.array([a.logprobs[0] for a in said])
    pairs = surprise[24:, None] - surprise[None, :24]
    assert ((pairs > 0) + 0.5 * (pairs == 0)).mean() >= 0.9


@pytest.mark.parametrize(("focus", "values"), [(0.0, True), (0.3, True), (0.5, False), (1.0, False)])
def test_critic_adds_attention_and_focus(focus: float, values: bool) -> None:
    def score(w: Whole) -> Any:
        weight = w.weights()
        given = w.by_kv(weight.sum(axis=2)) * (np.sqrt((w.v**2).sum(axis=-1)) if values else 1)
        given = np.where(w.held, np.vectorize(digits)(given), 0)
        entropy = w.by_kv(-(weight * np.log(np.maximum(weight, 1e-300))).sum(axis=-1))
        narrow = 1 - entropy / np.log(np.maximum(np.isfinite(w.x[:, ::GROUP]).sum(axis=-1), 2))
        return (1 - focus) * given / given.max(axis=-1, keepdims=True) + focus * np.vectorize(digits)(narrow)

    check(Critic(24, focus, values, sinks=2, **TIGHT), score, 12, sinks=2, exact=True)


# ------------------------------------------------------------------------------- expected-attention


def rotation(by: float, freq: Any) -> Any:
    """The whole matrix (dim, dim)."""
    m, out = len(freq), np.eye(2 * len(freq))
    for i, f in enumerate(freq):
        c, s = math.cos(by * f), math.sin(by * f)
        out[i, i] = out[i + m, i + m] = c
        out[i, i + m], out[i + m, i] = -s, s
    return out


@pytest.mark.parametrize("covariance", [True, False])
def test_expected_attention_is_that_of_normal_queries(covariance: bool) -> None:
    freq = small().ropes[0].inv_freq(0)

    def score(w: Whole) -> Any:
        out = np.zeros(w.held.shape)
        at = np.arange(max(w.since, 3), w.length)
        turn = np.mean([rotation(w.length + i, freq) for i in range(40)], axis=0)
        for layer, head in np.ndindex(*w.q.shape[:2]):
            kv, dim = head // GROUP, w.q.shape[-1]
            q = _rotated(w.q[layer, head, at], -at, freq)
            mean, cov = turn @ q.mean(axis=0), turn @ np.cov(q.T, bias=True) @ turn.T
            k = w.k[layer, kv]
            s = k @ mean / np.sqrt(dim)
            if covariance:
                s += np.array([x @ cov @ x for x in k]) / (2 * dim)
            e = np.where(w.held[layer, kv], np.exp(s), 0)
            out[layer, kv] += e / e.sum() / GROUP
        return out * np.sqrt((w.v**2).sum(axis=-1))

    policy = ExpectedAttention(24, future=40, covariance=covariance, sinks=3, **TIGHT)
    check(policy, score, 0, sinks=3)


def test_expected_attention_waits_for_queries() -> None:
    """No drop by fewer queries than half of what lies between two; of two prompts the second ends later."""
    policy = ExpectedAttention(every=100, prompt_every=512)
    for n_prompt, want in ((700, [700, 800]), (1300, [512, 1024, 1300, 1400]), (3, [3, 103])):
        at, met = 0, []
        while len(met) < len(want):
            at = policy.barrier(n_prompt, at)
            met.append(at)
        assert met == want


def test_expected_attention_knows_what_will_be_attended_to() -> None:
    """On a model that was trained: its ranks, and those of what the next 128 queries gave, by value norm."""
    found: list[float] = []
    first: dict[str, Any] = {}

    def ranks(x: Any) -> Any:
        return np.argsort(np.argsort(x))

    @dataclass(frozen=True)
    class Watch(ExpectedAttention):
        slot = "kv"

        def barrier(self, n_prompt: int, length: int) -> int:
            return n_prompt - 128 if length < n_prompt - 128 else n_prompt if length < n_prompt else FOREVER

        def plan(self, view: KVView, taps: dict[str, Any]) -> KVPlan | None:
            if view.length < view.n_prompt:
                first["score"] = self.score(view, taps).rows
                return None
            n = first["score"].shape[-1]
            for layer, q in enumerate(taps["q"]):
                given = view.by_kv_head(view.mass(layer, q, taps["q_pos"]))
                for head, x in enumerate((given * np.linalg.norm(view.v[layer], axis=-1))[:, 4:n]):
                    found.append(np.corrcoef(ranks(first["score"][layer, head, 4:]), ranks(x))[0, 1])
            return None

    read(Watch(future=128))
    assert np.mean(found) > 0.5


# ------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    "name", ["knorm", "random", "scissorhands", "keyformer", "critic", "expected-attention"]
)
def test_another_policy_may_set_their_budgets(name: str) -> None:
    run = Small(small(), AdaKv(f"{name}:budget=24,every=16,prompt_every=16"))
    run.feed(IDS[:N_PROMPT], N_PROMPT)
    n = np.array([s.n for s in run.kv.sealed]).reshape(3, 2)
    assert n.sum(axis=1).tolist() == [48, 48, 48]


@pytest.mark.parametrize(
    ("make", "bad"),
    [
        (Knorm, {"budget": 0}), (Knorm, {"recent": -1}), (Random, {"every": 0}), (Random, {"sinks": -1}),
        (Scissorhands, {"history": 1}), (Scissorhands, {"recent": -1}), (Keyformer, {"recent": 1.5}),
        (Keyformer, {"noise": -1.0}), (Keyformer, {"noise": math.inf}), (Keyformer, {"start": 0.0}),
        (Keyformer, {"start": 3.0}), (Critic, {"focus": 1.1}), (Critic, {"focus": math.nan}),
        (Critic, {"budget": 1}),
        (ExpectedAttention, {"future": 0}), (ExpectedAttention, {"sinks": -1}),
    ],
)  # fmt: skip
def test_ranges(make: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=next(iter(bad))):
        make(**bad)
