"""Sampling: an exact verifier gives the target's distribution, whatever the draft.

The law of three tokens over a vocabulary of 8 is enumerated, 512 cells, and held against what the real
verifier and the engine's own target emit for drafts of several shapes: chi-square with cells of small
expectation pooled (p > 1e-3) and total variation (at most 1.3 times what sampling noise gives). Planted
faults must fail the same test with p < 1e-6; otherwise it would prove nothing.

Run counts: 200,000 for each draft shape, 50,000 for each control.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pronghorn import rng
from pronghorn.slots import Target
from pronghorn.target import NodeTarget
from pronghorn.types import Accept, Draft, Guarantee
from tests.conformance import _find

V = 8
LENGTH = 3
RUNS = 200_000
CONTROL_RUNS = 50_000
PROMPT = (7, 7)
TRAITS = {n: _find.defaults("verify", n).traits for n in _find.names("verify")}
# those that keep the distribution and no more are looked at in `test_speculative_statistics`
NAMES = [n for n, t in TRAITS.items() if t.guarantee is Guarantee.EXACT and not t.greedy]

# --------------------------------------------------------------------------------- the toy target


@cache
def probs(path: tuple[int, ...]) -> Any:
    """p(next token | path): depends on the whole path, uneven, no zero."""
    r = np.random.default_rng(zlib.crc32(bytes(path)))
    z = 1.5 * r.standard_normal(V)
    e = np.exp(z - z.max())
    return e / e.sum()


@cache
def totals(path: tuple[int, ...]) -> list[float]:
    return [float(x) for x in np.cumsum(probs(path))]


@cache
def drawn(seed: int, pos: int) -> float:
    """The number of `draw`: the same for every draft, so it is made once for all of them."""
    return rng.uniform(seed, 0, pos, rng.DRAW)


def law() -> Any:
    """(V, V, V) probabilities of the three tokens."""
    out = np.zeros((V,) * LENGTH)
    for a in range(V):
        for b in range(V):
            out[a, b] = probs(())[a] * probs((a,))[b] * probs((a, b))
    return out


@cache
def paths(out: tuple[int, ...], tokens: bytes, parent: bytes) -> list[tuple[int, ...]]:
    """Text before each row's next token: row 0, then the nodes of a draft given as bytes."""
    found = [out]
    for t, p in zip(np.frombuffer(tokens, np.int32), np.frombuffer(parent, np.int32), strict=True):
        found.append((*found[p + 1], int(t)))
    return found


class Toy:
    """A `slots.Target` on the toy: the engine's draw, with the sums of each path computed once."""

    temperature = 1.0

    def __init__(self, seed: int, out: tuple[int, ...], draft: Draft) -> None:
        self.seed, self.out, self.draft = seed, out, draft

    def path(self, row: int) -> tuple[int, ...]:
        return paths(self.out, self.draft.tokens.tobytes(), self.draft.parent.tobytes())[row]

    def probs(self, row: int) -> Any:
        return probs(self.path(row))

    def uniform(self, row: int, purpose: int) -> float:
        return rng.uniform(self.seed, 0, len(PROMPT) + len(self.path(row)), purpose)

    def draw(self, row: int) -> int:
        path = self.path(row)
        total = totals(path)
        return bisect_right(total, self.number(len(PROMPT) + len(path)) * total[-1])

    def walk(self, draft: Draft) -> Accept:
        return draft.walk(self.draw)

    def number(self, pos: int) -> float:
        return drawn(self.seed, pos)


# ------------------------------------------------------------------------------------ the drafts


def tree(*nodes: tuple[int, int]) -> Draft:
    """Nodes as (parent, token)."""
    parent, token = zip(*nodes, strict=True)
    return Draft(np.asarray(token, np.int32), np.asarray(parent, np.int32))


@cache
def ranked(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort(-probs(path)))


@cache
def likely_chain(out: tuple[int, ...]) -> Draft:
    tokens: list[int] = []
    while len(out) + len(tokens) < LENGTH:
        tokens.append(ranked((*out, *tokens))[0])
    return Draft.chain(tokens)


@cache
def wrong_chain(out: tuple[int, ...]) -> Draft:
    """The least likely tokens: nearly always refused."""
    tokens: list[int] = []
    while len(out) + len(tokens) < LENGTH:
        tokens.append(ranked((*out, *tokens))[-1])
    return Draft.chain(tokens)


@cache
def top_tree(out: tuple[int, ...]) -> Draft:
    """The two likeliest tokens at each node, two levels: a top-k tree, not a sampled one."""
    nodes: list[tuple[int, int]] = []
    for first in ranked(out)[:2]:
        nodes.append((-1, first))
        at = len(nodes) - 1
        nodes += [(at, t) for t in ranked((*out, first))[:2]]
    return tree(*nodes)


@cache
def odd_tree(out: tuple[int, ...]) -> Draft:
    """Uneven, wide, with twins: the second of two equal siblings has children too."""
    a, b, c, *_ = ranked(out)
    return tree((-1, c), (-1, a), (0, b), (-1, b), (1, a), (-1, a), (1, c), (4, b), (5, b))


NOTHING = Draft.empty()
SHAPES: dict[str, Callable[[tuple[int, ...]], Draft]] = {
    "none": lambda out: NOTHING,
    "likely-chain": likely_chain,
    "wrong-chain": wrong_chain,
    "top-tree": top_tree,
    "odd-tree": odd_tree,
}


def write(verifier: Any, shape: str, seed: int, target: Callable[..., Target]) -> tuple[int, ...]:
    """Three tokens, in as many rounds as it takes."""
    out: tuple[int, ...] = ()
    while len(out) < LENGTH:
        draft = SHAPES[shape](out)
        accept = verifier.verify(target(seed, out, draft), draft)
        out = (*out, *(int(draft.tokens[i]) for i in accept.path), accept.bonus)
    return out[:LENGTH]


def counts(verifier: Any, shape: str, target: Callable[..., Target] = Toy, runs: int = RUNS) -> Any:
    seen = np.zeros(V**LENGTH, np.int64)
    for seed in range(runs):
        a, b, c = write(verifier, shape, seed, target)
        seen[(a * V + b) * V + c] += 1
    return seen.reshape((V,) * LENGTH)


def fit(seen: Any) -> tuple[float, float, float]:
    """(chi-square p, total variation, its bound)."""
    p, n = law().reshape(-1), int(seen.sum())
    seen = seen.reshape(-1)
    small = p * n < 5
    expected = np.append(p[~small] * n, p[small].sum() * n)
    got = np.append(seen[~small], seen[small].sum())
    if expected[-1] < 5:  # too little is pooled to stand alone
        expected = np.append(expected[:-2], expected[-2:].sum())
        got = np.append(got[:-2], got[-2:].sum())
    chi = ((got - expected) ** 2 / expected).sum()
    distance = 0.5 * np.abs(seen / n - p).sum()
    noise = 0.5 * np.sqrt(2 * p * (1 - p) / (np.pi * n)).sum()
    return float(stats.chi2.sf(chi, len(got) - 1)), float(distance), 1.3 * float(noise)


# ------------------------------------------------------------------------------------- the tests


def test_the_law_is_one() -> None:
    assert law().sum() == pytest.approx(1)
    assert law().min() > 0
    assert len({ranked((a,))[0] for a in range(V)}) > 2, "the second token depends on the first"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_goodness_of_fit(name: str, shape: str) -> None:
    p, distance, bound = fit(counts(_find.defaults("verify", name), shape))
    assert p > 1e-3, f"chi-square p {p:.2g}"
    assert distance <= bound, f"total variation {distance:.4f} above {bound:.4f}"


class SameUniform(Toy):
    """Fault: one random number for two positions."""

    def number(self, pos: int) -> float:
        return drawn(self.seed, pos // 2 * 2)


class AnyChild:
    """Fault: a child is followed when a number falls below its probability, and when none is, the bonus
    is a plain draw: the refused children count twice."""

    def verify(self, p: Target, draft: Draft) -> Accept:
        path: list[int] = []
        node = -1
        while True:
            for i in np.flatnonzero(draft.parent == node):
                if p.probs(node + 1)[draft.tokens[i]] > p.uniform(node + 1, 1 + int(i)):
                    node = int(i)
                    path.append(node)
                    break
            else:
                return Accept(path, p.draw(node + 1))


class NoWalk:
    """Fault: the path is found with the root's distribution at every node."""

    def verify(self, p: Target, draft: Draft) -> Accept:
        path: list[int] = []
        node = -1
        while True:
            token = p.draw(0)
            child = [int(i) for i in np.flatnonzero(draft.parent == node) if draft.tokens[i] == token]
            if not child:
                return Accept(path, token)
            node = child[0]
            path.append(node)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verifier", "target", "shape"),
    [
        (_find.defaults("verify", "match"), SameUniform, "none"),
        (_find.defaults("verify", "match"), SameUniform, "top-tree"),
        (AnyChild(), Toy, "likely-chain"),
        (AnyChild(), Toy, "top-tree"),
        (NoWalk(), Toy, "likely-chain"),
        (NoWalk(), Toy, "odd-tree"),
    ],
)
def test_planted_faults_fail(verifier: Any, target: Any, shape: str) -> None:
    p, distance, bound = fit(counts(verifier, shape, target, CONTROL_RUNS))
    assert p < 1e-6
    assert distance > bound


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["likely-chain", "wrong-chain", "top-tree", "odd-tree"])
def test_acceptance_is_the_children_s_probability(shape: str) -> None:
    """A walk goes on at a node with the probability of its children, within 3 sigma, at the root and one
    level down."""
    verifier, runs = _find.defaults("verify", "match"), 20_000
    draft = SHAPES[shape](())
    first: dict[int, int] = {}
    deeper = np.zeros((2, draft.n), np.int64)  # times a node was reached, times the walk went on from it
    went_on = 0
    for seed in range(runs):
        path = verifier.verify(Toy(seed, (), draft), draft).path
        went_on += len(path) > 0
        for i, node in enumerate(path):
            deeper[0, node] += 1
            deeper[1, node] += i + 1 < len(path)
    for i in np.flatnonzero(draft.parent < 0):
        first.setdefault(int(draft.tokens[i]), int(i))

    def check(hits: int, n: int, p: float) -> None:
        assert abs(hits - n * p) <= 3 * np.sqrt(n * p * (1 - p)) + 1e-9

    check(went_on, runs, float(sum(probs(())[t] for t in first)))
    for token, node in first.items():
        children = {int(draft.tokens[i]) for i in np.flatnonzero(draft.parent == node)}
        check(int(deeper[1, node]), int(deeper[0, node]), float(sum(probs((token,))[t] for t in children)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_engines_target_is_the_toys(name: str, shape: str) -> None:
    """The fit above runs on a cached target for speed; the engine's own gives the same texts."""

    def engines(seed: int, out: tuple[int, ...], draft: Draft) -> Target:
        free = SimpleNamespace(advance=len, rollback=lambda n: None, mask=lambda allowed: allowed.fill(True))
        seq = SimpleNamespace(
            request=SimpleNamespace(temperature=1.0, seed=seed), branch=0, tokens=[*PROMPT, *out],
            n_prompt=len(PROMPT), constraint=free,
        )  # fmt: skip
        toy = Toy(seed, out, draft)
        logits = np.log([toy.probs(row) for row in range(1 + draft.n)])
        return NodeTarget(seq, draft, logits, (), logits.shape[-1])  # type: ignore[arg-type]

    verifier = _find.defaults("verify", name)
    for seed in range(300):
        assert write(verifier, shape, seed, Toy) == write(verifier, shape, seed, engines)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_one_text_with_every_draft(name: str) -> None:
    verifier = _find.defaults("verify", name)
    for seed in range(300):
        assert len({write(verifier, shape, seed, Toy) for shape in SHAPES}) == 1


# --------------------------------------------------------------------------------- random numbers


def test_random_numbers_are_uniform_and_keyed() -> None:
    """Kolmogorov-Smirnov along each key alone, no value twice, and the same again for the same key."""
    base = [11, 2, 300, 1]
    seen = set()
    for axis in range(4):
        values = []
        for i in range(4000):
            key = base.copy()
            key[axis] += 1 + i
            values.append(rng.uniform(*key))
        assert stats.kstest(values, "uniform").pvalue > 1e-3
        pairs = np.corrcoef(values[:-1], values[1:])[0, 1]
        assert abs(pairs) < 0.06, "neighbours are unrelated"
        seen |= set(values)
    assert len(seen) == 16_000
    assert rng.uniform(*base) == rng.uniform(*base)
    assert all(0 <= u < 1 for u in seen)


def test_streams_are_keyed_and_begin_as_the_number_does() -> None:
    a = rng.stream(5, 1, 7, rng.DRAFT).random(1000)
    assert a[0] == rng.uniform(5, 1, 7, rng.DRAFT)
    assert (a == rng.stream(5, 1, 7, rng.DRAFT).random(1000)).all()
    keys = [(6, 1, 7, rng.DRAFT), (5, 2, 7, rng.DRAFT), (5, 1, 8, rng.DRAFT), (5, 1, 7, rng.DRAFT + 1)]
    others = [rng.stream(*key).random(1000) for key in keys]
    assert len(set(np.concatenate([a, *others]).tolist())) == 5000
    assert all(abs(np.corrcoef(a, b)[0, 1]) < 0.13 for b in others)
    assert stats.kstest(a, "uniform").pvalue > 1e-3


def test_seeds_may_be_large_or_negative() -> None:
    values = {rng.uniform(seed, 0, 0, 0) for seed in (0, 1, -1, 2**63, 2**64 - 2)}
    assert len(values) == 5
