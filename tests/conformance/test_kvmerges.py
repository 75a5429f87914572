"""What PrefixKV, KVMerger, EMS and Elastic Cache decide and merge, held against their steps row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pronghorn.errors import MethodError
from pronghorn.kv.view import KVView
from pronghorn.methods.kv.elastic import Elastic
from pronghorn.methods.kv.ems import Ems
from pronghorn.methods.kv.kvmerger import KvMerger
from pronghorn.methods.kv.prefixkv import PrefixKv
from pronghorn.types import BIAS, KVPlan
from tests.conformance._rig import N_VOCAB, Small, small
from tests.conformance.test_kvscores import digits, shares, watched

IDS = np.random.default_rng(5).integers(0, N_VOCAB, 110).tolist()
N_PROMPT = 75

Look = Callable[[KVView, dict[str, Any], KVPlan | None], None]


def run(policy: Any, look: Look, **shape: Any) -> Small:
    out = Small(small(**shape), watched(policy, look))
    out.feed(IDS, N_PROMPT, 10)
    assert out.kv.dropped
    return out


def masses(view: KVView, taps: dict[str, Any], layer: int, kv: int, first: int = 0) -> Any:
    """What a head's rows are given by the queries from number `first` on, one by one."""
    out, bias = np.zeros(view.n), view.note(BIAS)[layer, kv]
    for head in (2 * kv, 2 * kv + 1):
        for q, at in list(zip(taps["q"][layer, head], taps["q_pos"], strict=True))[first:]:
            w = shares(view, layer, head, q, at) * np.exp(bias)
            out += w / w.sum() / 2
    return out


def cosine(a: Any, b: Any) -> float:
    return round(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))), 4)


# ------------------------------------------------------------------------------- prefixkv


def test_prefixkv_layers_hold_one_share_of_attention() -> None:
    """The largest p of all that there are, one by one; each layer the shortest beginning that holds it."""
    total: dict[int, dict[int, float]] = {}
    uneven = 0

    def look(view: KVView, taps: dict[str, Any], plan: KVPlan | None) -> None:
        nonlocal uneven
        assert plan is not None
        orders, holds = [], []
        for layer in range(view.n_layers):
            held, pos = total.setdefault(layer, {}), view.pos[layer, 0]
            n = int(view.valid[layer, 0].sum())
            given = (masses(view, taps, layer, 0) + masses(view, taps, layer, 1)) / 2
            for j in range(n):
                held[pos[j]] = held.get(pos[j], 0.0) + given[j]
            score = [digits(held[p]) for p in pos[:n]]
            always = [j for j in range(n) if j < 4 or j >= n - 8]
            order = always + sorted(set(range(n)) - set(always), key=lambda j: (-score[j], j))
            orders.append(order)
            holds.append([sum(score[j] for j in order[:k]) / sum(score) for k in range(n + 1)])

        def lengths(p: float) -> list[int]:
            return [max(12, next(k for k, x in enumerate(h) if x >= p - 1e-9)) for h in holds]

        if sum(map(len, orders)) <= 24 * view.n_layers:
            assert not plan.keep
            return
        fits = [p for h in holds for p in h if sum(lengths(p)) <= 24 * view.n_layers]
        want = lengths(max(fits))
        assert 24 * view.n_layers - view.n_layers <= sum(want) <= 24 * view.n_layers
        for layer, (order, k) in enumerate(zip(orders, want, strict=True)):
            assert plan.keep.get(layer, np.arange(view.n)).tolist() == sorted(order[:k])
        if len(set(want)) > 1:
            uneven += 1
            least = min(h[k] for h, k in zip(holds, want, strict=True))
            assert least > min(h[24] for h in holds), "even budgets hold less where least is held"

    run(PrefixKv(24, window=8, every=16, prompt_every=16), look, gain=4.0)
    assert uneven > 2


@pytest.mark.parametrize("bad", [{"budget": 35}, {"window": 0}, {"sinks": -1}, {"every": 0}])
def test_prefixkv_ranges(bad: dict[str, int]) -> None:
    with pytest.raises(MethodError, match=next(iter(bad))):
        PrefixKv(**bad)


# ------------------------------------------------------------------------------- kvmerger


def doubled(policy: Any, n: int) -> Small:
    """A model's first n rows two by two: row 2 j + 1 is row 2 j once more."""
    out = Small(small(), policy)
    out.feed(IDS[:n], 60)
    out.store.seal(out.kv)
    view = out.store.view(out.kv, 60)
    k, v = (np.repeat(a[:, :, ::2], 2, axis=2) for a in (view.k, view.v))
    out.store.apply(out.kv, view.rewrite(KVPlan(), k, v, np.ones(view.valid.shape, bool)), False)
    return out


@pytest.mark.parametrize("count", [True, False])
def test_kvmerger_loses_nothing_where_neighbours_are_equal(count: bool) -> None:
    """18 pairs of 60 rows are merged; uncounted they weigh less, and the answer shows it."""
    policy = KvMerger(42, 0.999, recent=0.25, heavy=0, count=count, every=16, prompt_every=1000)
    got, want = doubled(policy, 40), doubled(None, 40)
    a, b = got.feed(IDS[40:64], 60), want.feed(IDS[40:64], 60)
    assert {s.n for s in got.kv.sealed} == {42}
    lost = np.abs(a - b)[20:].max()
    assert lost < 1e-5 if count else lost > 1e-3


def test_kvmerger_merges_sets_of_neighbours() -> None:
    merged, sizes = 0, []

    def look(view: KVView, taps: dict[str, Any], plan: KVPlan | None) -> None:
        nonlocal merged
        assert plan is not None
        if not plan.keep:
            return
        for g, ((layer, kv),) in enumerate(view.groups):
            n = int(view.valid[layer, kv].sum())
            k, v = view.k[layer, kv, :n], view.v[layer, kv, :n]
            total = (view.note("kvmerger.sum")[layer, kv] + masses(view, taps, layer, kv))[:n]
            held = np.maximum(view.note("kvmerger.count")[layer, kv, :n], 1)
            score = [digits(x) for x in total]
            safe = {j for j in range(n) if j < 4 or j >= n - 6}
            heavy = sorted(set(range(n)) - safe, key=lambda j: (-score[j], j))[:6]
            free = set(range(n)) - safe - set(heavy)
            pairs = [(-cosine(k[j], k[j + 1]), j) for j in range(n - 1) if {j, j + 1} <= free]
            joined = {j for c, j in sorted(p for p in pairs if -p[0] >= 0.2)[: n - 24]}
            sets: list[list[int]] = [[0]]
            for j in range(1, n):
                if j - 1 in joined:
                    sets[-1].append(j)
                else:
                    sets.append([j])
            rows: dict[int, float] = {}  # pivot -> what its set was given
            values = {}
            if g in plan.values:
                at, *new_rows = plan.values[g]
                values = dict(zip(at.tolist(), zip(*new_rows, strict=True), strict=True))
            for s in sets:
                pivot = min(s, key=lambda j: (-score[j], j))
                rows[pivot] = sum(total[j] for j in s)
                if len(s) == 1:
                    continue
                d = {j: float(((k[j] - k[pivot]) ** 2).sum()) for j in s}
                width = sum(d.values()) / (len(s) - 1)
                w = {j: held[j] * np.exp(-d[j] / (2 * width)) for j in s}
                if pivot in values:
                    for a, new in zip((k, v), values[pivot], strict=True):
                        assert np.allclose(new[0], sum(w[j] * a[j] for j in s) / sum(w.values()), atol=1e-5)
                    many = sum(held[j] for j in s)
                    assert plan.notes["kvmerger.count"][layer, kv, pivot] == many
                    assert np.isclose(plan.notes[BIAS][layer, kv, pivot], np.log(many))
                    sizes.append(len(s))
                merged += len(s) - 1
            left = sorted(set(rows) & free, key=lambda j: (digits(rows[j]), j))[: len(rows) - 24]
            assert plan.keep[g].tolist() == sorted(set(rows) - set(left))
            assert len(plan.keep[g]) == 24

    out = run(KvMerger(24, 0.2, every=16, prompt_every=16), look)
    assert merged > 50
    assert max(sizes) > 2
    assert max(s.n for s in out.kv.sealed) == 24


def test_kvmerger_drops_what_it_may_not_merge() -> None:
    """With a threshold that nothing reaches it keeps recent rows and heavy hitters."""
    got = Small(small(), KvMerger(24, 1.1, every=16, prompt_every=16))
    got.feed(IDS, N_PROMPT)
    assert {s.n for s in got.kv.sealed} == {24}
    assert all(p is None or not p.values for _, p in got.plans)


@pytest.mark.parametrize("bad", [{"budget": 1}, {"sinks": 600}, {"recent": 1.5}, {"heavy": -0.1}])
def test_kvmerger_ranges(bad: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=next(iter(bad))):
        KvMerger(**bad)


# ------------------------------------------------------------------------------- ems


def test_ems_without_merging_is_eviction_bit_for_bit() -> None:
    @dataclass(frozen=True)
    class Evicting(Ems):
        def plan(self, view: KVView, taps: dict[str, Any]) -> KVPlan | None:
            return view.plan(self.score(view, taps))

    options: dict[str, Any] = {"budget": 24, "window": 8, "threshold": 1.1, "every": 16, "prompt_every": 16}
    a, b = (Small(small(), policy(**options)) for policy in (Ems, Evicting))
    assert (a.feed(IDS, N_PROMPT) == b.feed(IDS, N_PROMPT)).all()
    merging = Small(small(), Ems(**{**options, "threshold": 0.2}))
    merging.feed(IDS, N_PROMPT)
    assert any(p and p.values for _, p in merging.plans)


def test_ems_merges_the_next_best_into_classes() -> None:
    merged = zero = 0

    def look(view: KVView, taps: dict[str, Any], plan: KVPlan | None) -> None:
        nonlocal merged, zero
        assert plan is not None
        fresh = min(8, len(taps["q_pos"]))
        for g, ((layer, kv),) in enumerate(view.groups):
            n = int(view.valid[layer, kv].sum())
            k, v, pos = (a[layer, kv, :n] for a in (view.k, view.v, view.pos))
            total = (view.note("ems.sum")[layer, kv] + masses(view, taps, layer, kv))[:n]
            late = view.note("ems.late")[layer, kv, :n] * (8 - fresh) / 8
            late = late + masses(view, taps, layer, kv, len(taps["q_pos"]) - fresh)[:n] / 8
            seen = total / (view.next_pos - pos)
            both = np.maximum(seen / seen.max(), late / late.max())
            score = [digits(x) for x in both]
            if not plan.keep:
                continue
            keep = plan.keep[g].tolist()
            own = len(keep)
            best = sorted(range(n - 8), key=lambda j: (-score[j], j))
            assert keep == sorted([*best[: own - 8], *range(n - 8, n)])
            classes: dict[int, list[int]] = {}
            for j in best[own - 8 :][:own]:
                alike = [cosine(k[j], k[c]) for c in keep]
                if max(alike) >= 0.5:
                    classes.setdefault(keep[int(np.argmax(alike))], []).append(j)
                else:
                    zero += 1
            rewrite = plan.values.get(g)
            assert (rewrite.rows.tolist() if rewrite else []) == sorted(classes)
            for i, c in enumerate(sorted(classes)):
                s = [c, *classes[c]]
                way = sum(both[j] * k[j] / np.linalg.norm(k[j]) for j in s)
                value = sum(both[j] * v[j] for j in s) / sum(both[j] for j in s)
                assert rewrite is not None
                assert np.allclose(
                    rewrite.k[i, 0], way / np.linalg.norm(way) * np.linalg.norm(k[c]), atol=1e-5
                )
                assert np.allclose(rewrite.v[i, 0], value, atol=1e-5)
                merged += len(s) - 1

    run(Ems(24, 8, threshold=0.5, every=16, prompt_every=16), look)
    assert merged > 50
    assert zero > 5


def test_ems_heads_share_a_layer_s_budget() -> None:
    kept = []

    def look(view: KVView, taps: dict[str, Any], plan: KVPlan | None) -> None:
        assert plan is not None
        if plan.keep:
            kept.append(view.kept(plan).sum(axis=-1))

    run(Ems(24, 8, every=16, prompt_every=16), look, gain=4.0)
    rows = np.array(kept)
    assert rows.min() >= 12
    assert set(rows[0].sum(axis=-1).tolist()) <= {47, 48}
    assert rows.sum(axis=-1).max() <= 48
    assert (rows[..., 0] != rows[..., 1]).any()
    run(Ems(24, 8, heads=False, every=16, prompt_every=16), look, gain=4.0)
    assert (np.array(kept[len(rows) :]) == 24).all()


@pytest.mark.parametrize(
    "bad", [{"budget": 63}, {"window": 0}, {"candidates": -1}, {"mass": 0.0}, {"prompt_every": 0}]
)
def test_ems_ranges(bad: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=next(iter(bad))):
        Ems(**bad)


# ------------------------------------------------------------------------------- elastic


def test_elastic_merges_into_the_nearest_anchor() -> None:
    """In the prompt; every row ever dropped is in the mean of the anchor that it went to."""
    total: dict[int, dict[int, float]] = {}
    parts: dict[tuple[int, int], list[Any]] = {}  # layer, position -> the k and v of all heads that are in it
    merged = 0

    def look(view: KVView, taps: dict[str, Any], plan: KVPlan | None) -> None:
        nonlocal merged
        if view.length > N_PROMPT:
            return
        assert plan is not None
        for layer in range(view.n_layers):
            held, pos, n = total.setdefault(layer, {}), view.pos[layer, 0], view.n
            given = (masses(view, taps, layer, 0) + masses(view, taps, layer, 1)) / 2
            for j in range(n):
                held[pos[j]] = held.get(pos[j], 0.0) + given[j]
                parts.setdefault((layer, pos[j]), [(view.k[layer, :, j], view.v[layer, :, j])])
            if n <= 24:
                continue
            best = sorted(range(1, n - 1), key=lambda j: (-digits(held[pos[j]]), j))[:22]
            keep = sorted([0, n - 1, *best])
            assert plan.keep[layer].tolist() == keep
            changed = set()
            for j in sorted(set(range(n)) - set(keep)):
                to = min(keep, key=lambda c: (abs(pos[c] - pos[j]), c))
                parts[layer, pos[to]] += parts.pop((layer, pos[j]))
                changed.add(to)
                merged += 1
            assert plan.values[layer].rows.tolist() == sorted(changed)
            for i, c in enumerate(sorted(changed)):
                for a, new in zip(
                    zip(*parts[layer, pos[c]], strict=True), plan.values[layer][1:], strict=True
                ):
                    assert np.allclose(new[i], np.mean(a, axis=0), atol=1e-5)
                assert (plan.notes["elastic.count"][layer, :, c] == len(parts[layer, pos[c]])).all()

    run(Elastic(24, window=8, every=16, prompt_every=16), look)
    assert merged > 100


@pytest.mark.parametrize("merge", [True, False])
def test_elastic_drops_at_a_fixed_place_in_the_answer(merge: bool) -> None:
    """As if row by row: whenever there are 25, the one with 8 behind it goes."""
    got = Small(small(), Elastic(24, window=8, merge=merge, every=16, prompt_every=16))
    got.feed(IDS[:N_PROMPT], N_PROMPT)
    view = got.store.view(got.kv, N_PROMPT)
    rows = [view.pos[layer, 0].tolist() for layer in range(view.n_layers)]
    got.feed(IDS[N_PROMPT:96], N_PROMPT)
    for at in range(N_PROMPT, 96):
        for row in rows:
            row.append(at)
            if len(row) > 24:
                del row[-9]
    view = got.store.view(got.kv, N_PROMPT)
    assert [view.pos[layer, 1].tolist() for layer in range(view.n_layers)] == rows
    assert any(p and p.values for _, p in got.plans) == merge


def test_elastic_keeps_the_same_rows_merged_or_not() -> None:
    a, b = (Small(small(), Elastic(24, window=8, merge=m, prompt_every=1000)) for m in (True, False))
    for s in (a, b):
        s.feed(IDS[:N_PROMPT], N_PROMPT)
    assert a.store.held == b.store.held
    plans = [[rows.tolist() for rows in s.plans[0][1].keep.values()] for s in (a, b)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("bad", [{"budget": 25}, {"window": 0}, {"sinks": -1}, {"every": 0}])
def test_elastic_ranges(bad: dict[str, int]) -> None:
    with pytest.raises(MethodError, match=next(iter(bad))):
        Elastic(**bad)


# ------------------------------------------------------------------------------- all


@pytest.mark.parametrize(
    "policy",
    [
        PrefixKv(24, window=8, every=16, prompt_every=16), KvMerger(24, 0.2, every=16, prompt_every=16),
        Ems(24, 8, threshold=0.2, every=16, prompt_every=16),
        Elastic(24, window=8, every=16, prompt_every=16),
    ],
    ids=lambda p: type(p).__name__,
)  # fmt: skip
def test_a_text_of_twelve_budgets_takes_no_more_memory(policy: Any) -> None:
    """Budgets hold at every barrier, and pages go back."""
    got = Small(small(), policy)
    r = np.random.default_rng(3)
    most = 0
    for _ in range(18):
        got.feed(r.integers(0, N_VOCAB, 16).tolist(), 32)
        most = max(most, got.store.held)
        assert sum(s.n for s in got.kv.sealed) <= 24 * len(got.kv.sealed)
    assert got.kv.length == 288
    page = got.store.sealed_layout.block
    assert most <= len(got.kv.sealed) * (24 // 16 + 2) * page
