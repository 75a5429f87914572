"""What policies decide, held against their papers' steps one query and one row at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pronghorn.errors import MethodError
from pronghorn.kv.view import KVView
from pronghorn.methods.kv.adakv import AdaKv
from pronghorn.methods.kv.d2o import D2O
from pronghorn.methods.kv.h2o import H2O
from pronghorn.methods.kv.pyramidkv import PyramidKv
from pronghorn.methods.kv.razor_attention import RazorAttention
from pronghorn.methods.kv.snapkv import SnapKv
from pronghorn.methods.kv.tova import Tova
from pronghorn.types import BIAS, KVPlan
from tests.conformance._rig import N_VOCAB, Small, small

IDS = np.random.default_rng(5).integers(0, N_VOCAB, 110).tolist()
N_PROMPT = 75


def watched(policy: Any, look: Callable[[KVView, dict[str, Any], KVPlan | None], None]) -> Any:
    """The policy, with a look at what it is shown and what it plans."""

    @dataclass(frozen=True)
    class Watched(type(policy)):  # type: ignore[misc]
        def plan(self, view: KVView, taps: dict[str, Any]) -> KVPlan | None:
            plan: KVPlan | None = super().plan(view, taps)
            look(view, taps, plan)
            return plan

    return Watched(**{f: getattr(policy, f) for f in policy.__dataclass_fields__})


def plans(policy: Any, n: int = len(IDS)) -> list[Any]:
    run = Small(small(), policy)
    run.feed(IDS[:n], N_PROMPT)
    return [(at, p and {g: rows.tolist() for g, rows in p.keep.items()}) for at, p in run.plans]


def digits(x: float) -> float:
    """As policies round."""
    return float(f"{x:.3e}")


def shares(view: KVView, layer: int, head: int, q: Any, pos: int) -> Any:
    """Weights of one query of one query head over a head's rows."""
    kv = head // (4 // view.n_kv)
    there = view.valid[layer, kv] & (view.pos[layer, kv] <= pos)
    s = np.where(there, view.k[layer, kv] @ q.astype(np.float64) * view.scale[layer], -np.inf)
    e = np.exp(s - s.max())
    return e / e.sum()


# ------------------------------------------------------------------------------- h2o


def test_h2o_keeps_what_was_attended_to_in_sum() -> None:
    """Sums since the beginning, of queries when they came; a row's sum stays when others go."""
    total: dict[tuple[int, int], dict[int, float]] = {}
    barriers = 0

    def look(view: KVView, taps: dict[str, Any], plan: KVPlan | None) -> None:
        nonlocal barriers
        assert plan is not None
        barriers += 1
        for g, ((layer, kv),) in enumerate(view.groups):
            held, pos = total.setdefault((layer, kv), {}), view.pos[layer, kv]
            for head in (2 * kv, 2 * kv + 1):
                for q, at in zip(taps["q"][layer, head], taps["q_pos"], strict=True):
                    for p, w in zip(pos, shares(view, layer, head, q, at), strict=True):
                        held[p] = held.get(p, 0.0) + w / 2
            n = int(view.valid[layer, kv].sum())
            heavy = sorted(range(n - 12), key=lambda j: (-digits(held[pos[j]]), j))[:12]
            want = sorted(heavy) + list(range(n - 12, n)) if n > 24 else list(range(n))
            assert plan.keep.get(g, np.arange(n)).tolist() == want

    run = Small(small(), watched(H2O(24, 16, 16), look))
    run.feed(IDS, N_PROMPT, 10)
    assert barriers == 7
    assert run.kv.dropped


def test_h2o_notes_the_same_for_any_chunks() -> None:
    runs = []
    for chunk in (64, 5):
        run = Small(small(), H2O(24, 16, 16))
        run.feed(IDS[:64], N_PROMPT, chunk)
        runs.append(run.store.view(run.kv, N_PROMPT).note("h2o.sum"))
    assert np.abs(runs[0] - runs[1]).max() < 1e-5
    assert runs[0].max() > 1


# ------------------------------------------------------------------------------- tova


@pytest.mark.parametrize("prompt_every", [0, 16])
def test_tova_drops_row_by_row(prompt_every: int) -> None:
    """Each query, as it comes, drops the row of least weight; all heads of a layer the same. Inside the
    prompt all do or, by default, its last one does it at once."""
    alive: dict[int, list[int]] = {}

    def look(view: KVView, taps: dict[str, Any], plan: KVPlan | None) -> None:
        for layer in range(view.n_layers):
            held = alive.setdefault(layer, [])
            where = view.pos[layer, 0]
            index = {int(p): j for j, p in enumerate(where) if p >= 0}
            assert (len(taps["q_pos"]) == 1) == (not prompt_every and view.length == N_PROMPT)
            if not prompt_every and not held:
                held += range(N_PROMPT - 1)
            for i, at in enumerate(taps["q_pos"]):
                held.append(int(at))
                while len(held) > 24:
                    w = np.mean(
                        [shares(view, layer, h, taps["q"][layer, h, i], at) for h in range(4)], axis=0
                    )
                    held.remove(min(held, key=lambda p: digits(w[index[p]])))
            rows = where[view.valid[layer, 0]] if plan is None else where[plan.keep[layer]]
            assert rows.tolist() == held

    run = Small(small(), watched(Tova(24, 16, prompt_every), look))
    run.feed(IDS, N_PROMPT, 10)
    assert run.kv.dropped
    assert len(alive[0]) == 24


# ------------------------------------------------------------------------------- budgets


def test_adakv_keeps_the_best_of_a_layer() -> None:
    """As many rows as the heads of a layer have together, a fifth of its own for each, the best of all."""
    seen = []

    def look(view: KVView, taps: dict[str, Any], plan: KVPlan | None) -> None:
        assert plan is not None
        scored = SnapKv(24, 8).score(view, taps)
        kept = view.kept(plan)
        for layer in range(view.n_layers):
            assert kept[layer].sum() == 24 * view.n_kv
            for head in range(view.n_kv):
                assert kept[layer, head, -8:].all()
                assert kept[layer, head].sum() >= 8
            out = scored.rows[layer][~kept[layer]]
            assert scored.rows[layer][kept[layer] & (np.arange(view.n) < view.n - 8)].min() >= out.max()
            seen.append(kept[layer].sum(axis=-1))

    Small(small(), watched(AdaKv("snapkv:budget=24,window=8"), look)).feed(IDS[:N_PROMPT], N_PROMPT)
    assert len({tuple(x) for x in seen}) > 1, "heads differ"


def test_adakv_floor_is_kept() -> None:
    run = Small(small(gain=4.0), AdaKv("h2o:budget=24,every=16,prompt_every=16", floor=1.0))
    run.feed(IDS, N_PROMPT)
    alike = Small(small(gain=4.0), H2O(24, 16, 16))
    alike.feed(IDS, N_PROMPT)
    assert [p.keep[g].tolist() for _, p in run.plans for g in p.keep] == [
        p.keep[g].tolist() for _, p in alike.plans for g in p.keep
    ]


def test_pyramidkv_falls_in_a_line() -> None:
    rows = []

    def look(view: KVView, taps: dict[str, Any], plan: KVPlan | None) -> None:
        assert plan is not None
        rows.append(view.kept(plan).sum(axis=-1))

    Small(small(), watched(PyramidKv("snapkv:budget=24,window=8"), look)).feed(IDS[:N_PROMPT], N_PROMPT)
    assert (rows[0] == rows[0][:, :1]).all()
    assert rows[0][:, 0].tolist() == [39, 24, 9]  # 8 always, 16 on average: from 31.2 to 0.8


def test_budgets_are_those_of_layers_within_which_heads_share() -> None:
    rows = []

    def look(view: KVView, taps: dict[str, Any], plan: KVPlan | None) -> None:
        assert plan is not None
        rows.append(view.kept(plan).sum(axis=-1))

    policy = AdaKv("pyramidkv:policy='snapkv:budget=24,window=8'")
    Small(small(), watched(policy, look)).feed(IDS[:N_PROMPT], N_PROMPT)
    assert rows[0].sum(axis=-1).tolist() == [78, 48, 18]
    assert policy.traits.rows == "head"


@pytest.mark.parametrize("bad", ["streaming-llm", "adakv", "", "nothing", "snapkv:budgt=3"])
def test_a_policy_that_does_not_score_has_no_budgets(bad: str) -> None:
    with pytest.raises(MethodError):
        AdaKv(bad)


# ------------------------------------------------------------------------------- d2o


def test_d2o_without_merging_is_h2o() -> None:
    plain = D2O(24, sinks=0, threshold=1.5, layers=False, every=16, prompt_every=16)
    assert plans(plain) == plans(H2O(24, 16, 16))


def test_d2o_merges_what_is_alike() -> None:
    merged = 0

    def look(view: KVView, taps: dict[str, Any], plan: KVPlan | None) -> None:
        nonlocal merged
        assert plan is not None
        near = plan.notes["d2o.near"] if plan.keep else None
        for g, rewrite in plan.values.items():
            ((layer, head),) = view.groups[g]
            k, v = view.k[layer, head], view.v[layer, head]
            n = int(view.valid[layer, head].sum())
            keep = plan.keep[g]
            unit = k / np.linalg.norm(k, axis=-1, keepdims=True)
            members: dict[int, list[int]] = {}
            for j in sorted(set(range(n)) - set(keep.tolist())):
                alike = np.round(unit[keep] @ unit[j], 4)
                if alike.max() >= near[layer, head, 0] - 1e-6:  # type: ignore[index]
                    members.setdefault(int(keep[alike.argmax()]), []).append(j)
            assert rewrite.rows.tolist() == sorted(members)
            for i, c in enumerate(rewrite.rows):
                for a, got in ((k, rewrite.k), (v, rewrite.v)):
                    u = [np.round(unit[c] @ unit[j], 4) for j in members[int(c)]]
                    want = a[c] + sum(x * a[j] for x, j in zip(u, members[int(c)], strict=True))
                    assert np.allclose(got[i, 0], want / (1 + len(u)), atol=1e-5)
                merged += len(members[int(c)])

    Small(small(), watched(D2O(24, every=16, prompt_every=16), look)).feed(IDS, N_PROMPT)
    assert merged > 50


def test_d2o_keeps_as_many_rows_as_it_may() -> None:
    run = Small(small(gain=4.0), D2O(24, every=16, prompt_every=16))
    run.feed(IDS[:N_PROMPT], N_PROMPT)
    n = [s.n for s in run.kv.sealed]
    assert 0.8 * 24 * len(n) < sum(n) <= 24 * len(n) + 2 * run.bound.n_layers
    assert len(set(n)) > 1, "layers differ"


# ------------------------------------------------------------------------------- razor-attention


@pytest.mark.parametrize("heads", [(), (1, 4)])
def test_razor_attention_stands_for_what_is_gone(heads: tuple[int, ...]) -> None:
    run = Small(small(), RazorAttention(heads, sinks=4, window=16, every=16, prompt_every=16))
    run.feed(IDS, N_PROMPT)
    view = run.store.view(run.kv, N_PROMPT)
    at_barrier = run.kv.length // 16 * 16
    for h in range(run.bound.n_layers * run.bound.n_kv):
        m = divmod(h, run.bound.n_kv)
        n = int(view.valid[m].sum())
        if h in heads:
            assert n == len(IDS)
            assert (view.note(BIAS)[m] == 0).all()
            continue
        assert n == 4 + 1 + 16 + run.kv.length - at_barrier
        assert np.allclose(view.note(BIAS)[m][4], np.log(at_barrier - 20))
        assert view.note("razor.count")[m].sum() == at_barrier - 20


def test_razor_attention_loses_nothing_where_keys_are_equal() -> None:
    """One row repeated: its copies' mean is the row, as often as it was there."""
    run, dense = Small(small(), RazorAttention(window=8, sinks=0, every=16, prompt_every=16)), Small(small())
    for s in (run, dense):
        s.feed(IDS[:9], 9)
        s.store.seal(s.kv)
        view = s.store.view(s.kv, 9)
        k, v = (np.repeat(a[:, :, 4:5], 9, axis=2) for a in (view.k, view.v))
        s.store.apply(s.kv, view.rewrite(KVPlan(), k, v, np.ones(view.valid.shape, bool)), False)
    got, want = (s.feed(IDS[9:60], 9) for s in (run, dense))
    assert np.abs(got[: 32 - 9] - want[: 32 - 9]).max() < 1e-5, "between the barriers at 16 and 32"
    assert np.abs(got[32 - 9 :] - want[32 - 9 :]).max() > 1e-3, "then rows that differ are gone too"
