"""Draft trees: how tokens are drawn, and what shape and size are best."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pronghorn.cost import StepCost
from pronghorn.methods.draft import _sequoia
from pronghorn.methods.draft._growers import draws, top
from pronghorn.methods.draft._sequoia import Ranks, bushy, expected, shape, size
from pronghorn.methods.draft._trees import KINDS, Growth, grower
from pronghorn.slots import DraftRoom
from pronghorn.types import Accept, Draft
from tests.conformance._rig import check_draft

V = 6


def table(seed: int, sparse: bool = False) -> Any:
    """q(next | path), by path."""

    @cache
    def q(path: tuple[int, ...]) -> Any:
        r = np.random.default_rng([seed, *path])
        row = r.dirichlet(np.ones(V))
        if sparse:
            row[r.permutation(V)[: V - 2]] = 0
        return row / row.sum()

    return q


def grow(kind: str, nodes: int, depth: int, q: Any, source: Any, **options: Any) -> Draft:
    growth = Growth(grower(kind, nodes, depth, lambda d: source, **options), depth)
    while growth.frontier:
        draft = growth.draft
        growth.extend(np.array([q(path(draft, n)) for n in growth.frontier]))
    return growth.done()


def path(draft: Draft, node: int) -> tuple[int, ...]:
    out: list[int] = []
    while node >= 0:
        out.insert(0, int(draft.tokens[node]))
        node = int(draft.parent[node])
    return tuple(out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_every_kind_grows_trees_within_bounds(kind: str, greedy: bool, sparse: bool) -> None:
    r = np.random.default_rng(1)
    for nodes, depth in [(0, 3), (1, 1), (3, 3), (7, 2), (12, 4), (5, 9), (4, 0)]:
        for seed in range(4):
            q = table(seed, sparse)
            d = grow(kind, nodes, depth, q, r, greedy=greedy)
            check_draft(d, depth, V)
            assert d.n <= nodes
            assert d.n > 0 or nodes * depth == 0
            assert ((d.score > 0) & (d.score < 1)).all()
            assert all(q(path(d, int(p)))[t] > 0 for t, p in zip(d.tokens, d.parent, strict=True))
            assert len(d.score) == d.n
            assert len(d.q) == (0 if greedy or kind == "best" else d.n)
            for i in range(len(d.q)):
                assert d.q[i].sum() == pytest.approx(1)
                assert d.q[i][d.tokens[i]] > 0
                if kind != "multi":
                    assert (d.q[i] == q(path(d, int(d.parent[i])))).all()


def test_a_greedy_chain_and_a_greedy_beam() -> None:
    q, r = table(3), np.random.default_rng(0)
    d = grow("chain", 4, 4, q, r, greedy=True)
    assert all(d.tokens[i] == q(path(d, i - 1)).argmax() for i in range(4))
    d = grow("rsd-s", 6, 2, q, r, greedy=True)  # three a level
    pairs = {(a, b): q(())[a] * q((a,))[b] for a in top(q(()), 3) for b in range(V)}
    best = sorted(pairs, key=lambda x: -pairs[x])[:3]
    assert {path(d, i) for i in range(3, 6)} == set(best)


def test_best_holds_the_likeliest_paths() -> None:
    r = np.random.default_rng(0)
    for seed in range(10):
        q = table(seed)
        chance = {}
        for n in (1, 2, 3):
            for x in itertools.product(range(V), repeat=n):
                chance[x] = np.prod([q(x[:i])[x[i]] for i in range(n)])
        d = grow("best", 9, 3, q, r)
        assert [path(d, i) for i in range(9)] == sorted(chance, key=lambda x: -chance[x])[:9]


# ---------------------------------------------------------------------------------------- drawing


def fits(seen: dict[Any, int], law: dict[Any, float]) -> float:
    n = sum(seen.values())
    keys = [k for k in law if law[k] * n >= 5]
    expected_ = np.array([*(law[k] * n for k in keys), n - sum(law[k] * n for k in keys)])
    got = np.array([*(seen.get(k, 0) for k in keys), n - sum(seen.get(k, 0) for k in keys)])
    some = expected_ > 5
    chi = ((got - expected_)[some] ** 2 / expected_[some]).sum()
    return float(stats.chi2.sf(chi, some.sum() - 1))


def apart(q: Any, n: int) -> dict[tuple[int, ...], float]:
    """The law of n draws without replacement."""
    out = {}
    for x in itertools.permutations(range(len(q)), n):
        left, chance = q.copy(), 1.0
        for t in x:
            chance *= left[t] / left.sum() if left.sum() else 0
            left[t] = 0
        out[x] = chance
    return out


def test_draws_without_replacement() -> None:
    r = np.random.default_rng(2)
    for q in (np.array([0.4, 0.3, 0.2, 0.1, 0.0]), np.array([0.97, 0.01, 0.01, 0.005, 0.005])):
        seen: dict[Any, int] = {}
        for _ in range(20_000):
            x = tuple(draws(q, 3, r))
            seen[x] = seen.get(x, 0) + 1
        assert fits(seen, apart(q, 3)) > 1e-3
    assert sorted(draws(np.array([0.0, 0.5, 0.0, 0.5]), 3, r)) == [1, 3], "there are no more"
    assert draws(np.array([0.0, 1.0]), 2, r) == [1]
    assert sorted(draws(np.array([1.0, 1e-300, 1e-310]), 3, r)) == [0, 1, 2]


def test_the_beam_draws_paths_without_replacement() -> None:
    """The last level, in order of G, is a draw without replacement of whole paths (Kool et al., 2019)."""
    q, r = table(5), np.random.default_rng(3)
    leaves = {(a, b): q(())[a] * q((a,))[b] for a in range(V) for b in range(V)}
    keys = list(leaves)
    law = {tuple(keys[i] for i in x): c for x, c in apart(np.array(list(leaves.values())), 2).items()}
    seen: dict[Any, int] = {}
    for _ in range(6_000):
        d = grow("rsd-s", 4, 2, q, r)
        x = tuple(path(d, i) for i in range(2, 4))
        seen[x] = seen.get(x, 0) + 1
    assert fits(seen, law) > 1e-3


def test_the_beam_bears_certainty() -> None:
    """Nearly all of the probability on one token: no infinity, and still two paths."""
    r = np.random.default_rng(0)
    row = np.array([1 - 1e-15, 1e-15, 1e-300, 0, 0, 0])
    with np.errstate(all="raise", under="ignore"):
        for _ in range(200):
            d = grow("rsd-s", 8, 4, lambda path: row, r)
            assert d.n >= 7
            assert np.isfinite(d.score).all()


def test_scores_of_drawn_nodes_do_not_tell_their_tokens() -> None:
    """Whoever prunes by scores keeps the distribution."""
    q = table(8)
    for kind in ("chain", "rsd-c", "rsd-s", "sequoia", "multi"):
        by_place: dict[Any, set[float]] = {}
        for seed in range(50):
            d = grow(kind, 6, 3, q, np.random.default_rng(seed))
            children: dict[int, int] = {}
            for i, p in enumerate(d.parent.tolist()):
                rank = children[p] = children.get(p, -1) + 1
                by_place.setdefault((path(d, p), rank), set()).add(round(float(d.score[i]), 12))
        assert all(len(v) == 1 for v in by_place.values())


# ------------------------------------------------------------------------------- shapes and sizes


def worth(parents: tuple[int, ...], accept: Any) -> float:
    """Tokens of a step with this tree."""
    chance, depth, rank, total = {-1: 1.0}, {-1: 0}, {}, 1.0
    for i, p in enumerate(parents):
        rank[p] = rank.get(p, -1) + 1
        d = depth[p]
        chance[i] = chance[p] * (accept[d][rank[p]] if d < len(accept) and rank[p] < len(accept[d]) else 0)
        depth[i] = d + 1
        total += chance[i]
    return total


@pytest.mark.parametrize("n", range(7))
def test_the_program_finds_the_best_of_all_trees(n: int) -> None:
    """Brute force over every tree of n nodes, acceptance falling by rank or not."""
    for seed in range(4):
        r = np.random.default_rng(seed)
        accept = tuple(tuple(0.95 * r.dirichlet(np.ones(4))[:3]) for _ in range(3))
        every = itertools.product(*(range(-1, i) for i in range(n)))
        best = max(worth(x, accept) for x in every)
        assert expected(accept, n)[n] == pytest.approx(best)
        assert worth(shape(accept, n), accept) == pytest.approx(best)


def test_shapes_are_best_first() -> None:
    accept = _sequoia.USUAL
    found = shape(accept, 40)
    assert len(found) == 40
    assert all(p < i for i, p in enumerate(found))
    values = [worth(found[:i], accept) for i in range(41)]
    assert (np.diff(values) <= np.append([1], np.diff(values)[:-1]) + 1e-12).all(), (
        "the best nodes come first"
    )
    assert len(shape(accept[:1], 40)) == _sequoia.WIDTH, (
        "one level takes no more than the ranks that there are"
    )
    assert shape((), 5) == ()


def test_bushy_shapes() -> None:
    assert bushy(30, 4) == tuple(p for p in range(-1, 14) for _ in range(2))
    assert bushy(4, 4) == (-1, 0, 1, 2)
    assert bushy(5, 1) == (-1,) * 5
    assert bushy(0, 0) == ()


def cost(per_row: float, flat: float = 1.0) -> StepCost:
    c = StepCost()
    for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        for _ in range(4):
            c.observe(rows, rows * 100, flat + per_row * rows)
    return c


def test_the_size_follows_the_machine() -> None:
    accept = _sequoia.USUAL

    def at(per_row: float, level: float = 0.0, seqs: int = 1, rows: int = 4096) -> tuple[int, int]:
        return size(accept, DraftRoom(rows, seqs, 100 * seqs, cost(per_row)), 128, level, seqs)

    free, cheap, dear, never = at(0.0), at(0.02), at(0.2), at(3.0)
    assert free[0] == 128
    assert free[0] > cheap[0] > dear[0] > 0
    assert never == (0, 0), "rows cost more than they bring"
    assert at(0.02, level=0.3)[1] < cheap[1], "levels that take time to draft are fewer"
    assert at(0.02, seqs=32)[0] < cheap[0], "rows of others count too"
    assert at(0.0, rows=5)[0] == 5
    nodes, depth = cheap
    rate = expected(accept[:depth], nodes)[nodes] / (1 + 0.02 * (1 + nodes))
    for n in range(1, 60):
        for d in range(1, 9):
            assert expected(accept[:d], n)[n] / (1 + 0.02 * (1 + n)) < 1.05 * rate


def test_size_without_prices() -> None:
    assert size(_sequoia.USUAL, DraftRoom(), 64) == (_sequoia.UNPRICED, 8)
    assert size(_sequoia.USUAL, DraftRoom(rows=0), 64) == (0, 0)


def test_ranks_learn_what_stands() -> None:
    r, ranks = np.random.default_rng(0), Ranks()
    true = np.array([0.5, 0.2, 0.1])
    draft = Draft(np.arange(4, dtype=np.int32), np.array([-1, -1, -1, 0], np.int32))
    for _ in range(3000):
        x = int(r.choice(4, p=[*true, 0.2]))
        ranks.note(draft, Accept([] if x == 3 else [0, 3] if x == 0 else [x], 0))
    table_ = np.array(ranks.table())
    assert np.abs(table_[0, :3] - true).max() < 0.12
    assert table_[1, 0] > 0.95
    assert table_[2, 0] == pytest.approx(_sequoia.FIRST, abs=0.01), "nothing was seen there"
