"""Drawn drafts: the verifiers that promise the target's distribution keep it, and accept what they should.

The law of one token is worked out exactly from the verifier itself: the numbers in [0, 1) at which it decides
otherwise are found by bisection. The law of three tokens over a vocabulary of 8 (512 cells, rounds and trees
as the engine runs them) is sampled and held against the enumerated one, as in `test_statistics`. Planted
faults must fail both.

The draft model differs from the target, in some contexts more than in others, and in some has three tokens.
"""

from __future__ import annotations

import itertools
import random
import zlib
from bisect import bisect_right
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from pronghorn import rng
from pronghorn.methods.draft import _trees
from pronghorn.methods.draft._trees import Growth, grower
from pronghorn.methods.verify._optimal import bound, greedy
from pronghorn.methods.verify._sampled import one_by_one, pick, walk
from pronghorn.methods.verify.match import Match
from pronghorn.methods.verify.multi_draft import MultiDraft
from pronghorn.methods.verify.rejection import Rejection
from pronghorn.methods.verify.siblings import Siblings
from pronghorn.methods.verify.typical import Typical
from pronghorn.target import NodeTarget
from pronghorn.types import Accept, Draft, Guarantee
from tests.conformance import _find
from tests.test_statistics import LENGTH, PROMPT, V, fit, probs, totals, tree

LOSSLESS = {
    n: v
    for n in _find.names("verify")
    if (v := _find.defaults("verify", n)).traits.guarantee is Guarantee.DISTRIBUTION
}
RUNS = 20_000
HIGH = 1 - 2.0**-53

# ------------------------------------------------------------------------ the law of one token, exactly


class One:
    """A target whose first row is p and whose numbers are given: 1 for what is emitted after refusals, from 2
    on for the children."""

    temperature = 1.0

    def __init__(self, p: Any, numbers: dict[int, float]) -> None:
        self.p, self.numbers = p, numbers
        self.asked: set[int] = set()

    def probs(self, row: int) -> Any:
        return self.p

    def draw(self, row: int) -> int:
        return 0 if row else pick(self.p, self.numbers[0])

    def walk(self, draft: Draft) -> Accept:
        return draft.walk(self.draw)

    def uniform(self, row: int, purpose: int) -> float:
        self.asked.add(purpose)
        return self.numbers[purpose]


def law_of(verifier: Any, p: Any, draft: Draft) -> tuple[Any, float]:
    """(law of the first token, chance that a child stands) for a draft of depth 1."""
    asked: set[int] = set()

    def first(emit: float, child: dict[int, float]) -> tuple[int, bool]:
        target = One(p, {0: emit, 1: emit} | dict.fromkeys(range(2, 2 + draft.n), HIGH) | child)
        accept = verifier.verify(target, draft)
        asked.update(target.asked)
        token = int(draft.tokens[accept.path[0]]) if accept.path else accept.bonus
        return token, bool(accept.path)

    def edge(after: Callable[[float], bool]) -> float:
        """The number from which on `after` holds."""
        low, high = 0.0, 1.0
        while high - low > 1e-13:
            middle = (low + high) / 2
            low, high = (low, middle) if after(middle) else (middle, high)
        return high

    law, stands, weight = np.zeros(len(p)), 0.0, 1.0
    first(0.5, {})
    for purpose in sorted(asked - {1}):
        token, on = first(0.5, {purpose: 0.0})
        if not on:  # the target never writes it
            continue
        some = np.linspace(0.01, 0.99, 9)
        t = edge(lambda u: any(first(e, {purpose: u}) != (token, True) for e in some))  # noqa: B023
        law[token] += weight * t
        stands += weight * t
        weight *= 1 - t
    cuts = [0.0, *(edge(lambda u: first(u, {})[0] >= k) for k in range(1, len(p))), 1.0]  # noqa: B023
    for a, b in itertools.pairwise(cuts):
        if b - a > 1e-12:
            token, on = first((a + b) / 2, {})
            law[token] += weight * (b - a)
            stands += weight * (b - a) * on
    return law, stands


def drafts(kind: str, q: Any, n: int) -> list[tuple[float, Draft]]:
    """All drafts of depth 1 with their chances."""
    out = []
    for tokens in itertools.product(range(len(q)), repeat=n):
        chance, left, rows = 1.0, q.copy(), []
        for i, x in enumerate(tokens):
            if kind == "multi" and i < n - 1:
                chance *= x == np.argsort(-q, kind="stable")[i]
                rows.append(np.eye(len(q))[x])
                left[x] = 0
                continue
            row = left / left.sum() if left.sum() > 0 else left
            chance *= row[x]
            rows.append(row if kind in ("left", "multi") else q)
            if kind != "iid":
                left[x] = 0
        if chance > 0:
            out.append((chance, Draft(np.array(tokens, np.int32), np.full(n, -1, np.int32), np.array(rows))))
    assert sum(c for c, _ in out) == pytest.approx(1)
    return out


def exact(verifier: Any, p: Any, every: list[tuple[float, Draft]]) -> tuple[Any, float]:
    law, stands = np.zeros(len(p)), 0.0
    for chance, draft in every:
        one, on = law_of(verifier, p, draft)
        law += chance * one
        stands += chance * on
    return law, stands


def pair(seed: int, n: int = 5) -> tuple[Any, Any]:
    """p and q; every other q has few tokens."""
    r = np.random.default_rng(seed)
    p, q = r.dirichlet(np.ones(n)), r.dirichlet(np.ones(n))
    if seed % 2:
        q[np.argsort(q)[:2]] = 0
    if seed % 3 == 2:
        p[int(r.integers(n))] = 0
    return p / p.sum(), q / q.sum()


def refused(p: Any, q: Any, n: int, replace: bool) -> float:
    """The chance that recursive rejection refuses n siblings, by its definition."""
    keep = float(np.minimum(p, q).sum())
    if n == 1 or keep > 1 - 1e-12:
        return 1 - keep
    left, out = np.maximum(p - q, 0), 0.0
    for x in np.flatnonzero(q > p):
        rest = q.copy()
        rest[x] = 0 if not replace else q[x]
        if rest.sum() > 0:
            out += (q[x] - p[x]) * refused(left / left.sum(), rest / rest.sum(), n - 1, replace)
        else:
            out += q[x] - p[x]
    return out


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("kind", ["repeated", "left", "multi"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_token_has_the_targets_law(name: str, kind: str, n: int) -> None:
    for seed in range(2 if n == 3 else 6):
        p, q = pair(seed)
        law, _ = exact(LOSSLESS[name], p, drafts(kind, q, n))
        assert np.abs(law - p).max() < 1e-10


@pytest.mark.parametrize("verifier", [Siblings(replace=True), Siblings(), MultiDraft()], ids=str)
def test_independent_draws_have_the_targets_law(verifier: Any) -> None:
    """Without replacement a token that is there twice is passed over: what is left was drawn so."""
    for seed in range(6):
        p, q = pair(seed)
        law, _ = exact(verifier, p, drafts("iid", q, 2))
        assert np.abs(law - p).max() < 1e-10


def test_siblings_of_several_draft_models() -> None:
    """Each has its own q; they are independent."""
    for seed in range(4):
        p, q = pair(seed)
        _, other = pair(seed + 10)
        both = [
            (q[x] * other[y], tree((-1, x), (-1, y))._replace(q=np.array([q, other])))
            for x in range(5)
            for y in range(5)
            if q[x] * other[y] > 0
        ]
        assert np.abs(exact(Siblings(replace=True), p, both)[0] - p).max() < 1e-10


def test_equal_distributions_accept_everything() -> None:
    """No residual is left where p and q are equal, but for rounding."""
    p, _ = pair(0)
    for verifier in LOSSLESS.values():
        for noise in (0.0, 1e-16, 1e-14):
            q = p + noise * np.array([1, -1, 1, -1, 0])
            law, stands = exact(verifier, p, drafts("repeated", q, 1))
            assert np.abs(law - p).max() < 1e-10
            assert stands > 1 - 1e-10


class NoResidual:
    """Fault: after a refusal the target's own distribution is drawn from."""

    def verify(self, p: Any, draft: Draft) -> Accept:
        def choose(row: int, own: list[int]) -> tuple[int, int]:
            node, token = one_by_one(p, draft, row, own)
            return (node, token) if node >= 0 else (-1, pick(p.probs(row), p.uniform(row, 1)))

        return walk(p, draft, choose)


def likeliest(q: Any, n: int) -> list[tuple[float, Draft]]:
    """Fault: the top n, said to be drawn from q."""
    best = np.argsort(-q, kind="stable")[:n].astype(np.int32)
    return [(1.0, Draft(best, np.full(n, -1, np.int32), np.array([q] * n)))]


@pytest.mark.parametrize(
    ("verifier", "kind"),
    [
        (NoResidual(), "repeated"),
        (Siblings(replace=True), "repeated"),  # q is not brought up to date
        (Siblings(), "likeliest"),
        (Rejection(), "likeliest"),
        (MultiDraft(), "likeliest"),
    ],
)
def test_planted_faults_change_the_law_of_one_token(verifier: Any, kind: str) -> None:
    off = []
    for seed in (0, 4):
        p, q = pair(seed)
        every = likeliest(q, 2) if kind == "likeliest" else drafts(kind, q, 2)
        off.append(np.abs(exact(verifier, p, every)[0] - p).sum() / 2)
    assert max(off) > 0.02, off


# ------------------------------------------------------------------------------------- acceptance


def test_acceptance_is_what_it_should_be() -> None:
    """Rejection: sum min(p, q). Siblings: by definition, below the bound and near it. Greedy: its formula."""
    for seed in range(6):
        p, q = pair(seed)
        once = float(np.minimum(p, q).sum())
        assert exact(Rejection(), p, drafts("repeated", q, 1))[1] == pytest.approx(once, abs=1e-10)
        assert exact(Rejection(), p, drafts("repeated", q, 2))[1] == pytest.approx(once, abs=1e-10)
        assert bound(p, q, 1) == pytest.approx(once, abs=1e-10)
        for replace, kind in ((False, "repeated"), (True, "iid")):
            got = exact(Siblings(replace=replace), p, drafts(kind, q, 2))[1]
            assert got == pytest.approx(1 - refused(p, q, 2, replace), abs=1e-10)
            assert 0.8 * bound(p, q, 2, replace) <= got <= bound(p, q, 2, replace) + 1e-10
        assert exact(MultiDraft(), p, drafts("multi", q, 2))[1] == pytest.approx(greedy(p, q, 2), abs=1e-10)


def test_more_siblings_accept_more_and_repeats_less() -> None:
    found = []
    for seed in range(40):
        p, q = (np.random.default_rng(seed).dirichlet(np.ones(6), 2))[:2]
        found.append(
            [1 - refused(p, q, n, replace) for replace in (False, True) for n in (1, 2, 3)]
            + [bound(p, q, n, replace) for replace in (False, True) for n in (1, 2, 3)]
        )
    a = np.mean(found, axis=0)
    assert a[0] < a[1] < a[2]
    assert a[1] > a[4]
    assert a[2] > a[5]
    assert (np.array(found)[:, :6] <= np.array(found)[:, 6:] + 1e-10).all()


def optimum(p: Any, q: Any, n: int, kind: str) -> float:
    """The most that can be accepted, as a linear program over (drafts, token)."""
    every = drafts(kind, q, n)
    size = len(p)
    gain = np.array([float(x in d.tokens) for _, d in every for x in range(size)])
    rows = np.kron(np.eye(len(every)), np.ones(size))
    columns = np.kron(np.ones(len(every)), np.eye(size))
    best = linprog(
        -gain,
        A_eq=np.vstack([rows, columns]),
        b_eq=np.concatenate([[c for c, _ in every], p]),
        method="highs",
    )
    return float(-best.fun)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_bound_is_the_optimum(n: int) -> None:
    for seed in range(8):
        p, q = pair(seed)
        assert bound(p, q, n, replace=True) == pytest.approx(optimum(p, q, n, "iid"), abs=1e-9)
        if np.count_nonzero(q) >= n:
            assert bound(p, q, n) == pytest.approx(optimum(p, q, n, "repeated"), abs=1e-9)
        assert greedy(p, q, n) == pytest.approx(optimum(p, q, n, "multi"), abs=1e-9)


def test_the_bound_of_a_large_vocabulary() -> None:
    r = np.random.default_rng(0)
    p, q = r.dirichlet(np.full(1000, 0.05), 2)
    values = [bound(p, q, n) for n in (1, 2, 4)]
    assert values[0] == pytest.approx(np.minimum(p, q).sum(), abs=0.02)
    assert values == sorted(values)


# --------------------------------------------------------------------------- the law of three tokens


@cache
def guesses(path: tuple[int, ...]) -> Any:
    """The draft model: between the target and something else; after odd tokens it has three tokens."""
    r = np.random.default_rng(zlib.crc32(bytes([*path, 99])))
    e = np.exp(1.5 * r.standard_normal(V))
    q = 0.4 * probs(path) + 0.6 * e / e.sum()
    if path and path[-1] % 2:
        q[np.argsort(q)[:-3]] = 0
    return q / q.sum()


class Numbers:
    """Random numbers of one text, keyed as the engine's are, and cheaper."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.known: dict[tuple[int, int], float] = {}
        self.streams: dict[int, list[float]] = {}

    def uniform(self, pos: int, purpose: int) -> float:
        if (pos, purpose) not in self.known:
            self.known[pos, purpose] = self.source.random()
        return self.known[pos, purpose]

    def noise(self, pos: int) -> Any:
        """The same numbers at each call, as a keyed stream gives them."""
        had, at = self.streams.setdefault(pos, []), [0]

        def take() -> float:
            if at[0] == len(had):
                had.append(self.source.random())
            at[0] += 1
            return had[at[0] - 1]

        return SimpleNamespace(random=take, standard_exponential=lambda: -np.log1p(-take()))


class Keyed(Numbers):
    """The engine's own numbers."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def uniform(self, pos: int, purpose: int) -> float:
        return rng.uniform(self.seed, 0, len(PROMPT) + pos, purpose)

    def noise(self, pos: int) -> Any:
        return rng.stream(self.seed, 0, len(PROMPT) + pos, rng.DRAFT)


class SameForAll(Numbers):
    """Fault: one number of a position for every purpose."""

    def uniform(self, pos: int, purpose: int) -> float:
        return super().uniform(pos, 0)


class Drafters(Numbers):
    """Fault: a child's number is the one that it was drafted with."""

    def uniform(self, pos: int, purpose: int) -> float:
        return float(self.noise(pos).random()) if purpose == 2 else super().uniform(pos, purpose)


class Toy:
    temperature = 1.0

    def __init__(self, numbers: Numbers, out: tuple[int, ...], draft: Draft) -> None:
        self.numbers, self.out = numbers, out
        self.tokens, self.parent = draft.tokens.tolist(), draft.parent.tolist()

    def path(self, row: int) -> tuple[int, ...]:
        path, node = [], row - 1
        while node >= 0:
            path.append(self.tokens[node])
            node = self.parent[node]
        return (*self.out, *path[::-1])

    def probs(self, row: int) -> Any:
        return probs(self.path(row))

    def uniform(self, row: int, purpose: int) -> float:
        return self.numbers.uniform(len(self.path(row)), purpose)

    def draw(self, row: int) -> int:
        path = self.path(row)
        total = totals(path)
        return bisect_right(total, self.numbers.uniform(len(path), 0) * total[-1])

    def walk(self, draft: Draft) -> Accept:
        return draft.walk(self.draw)


def grown(kind: str, nodes: int, out: tuple[int, ...], numbers: Numbers) -> Draft:
    depth = LENGTH - len(out)
    growth = Growth(grower(kind, nodes, depth, lambda d: numbers.noise(len(out) + d)), depth)
    while growth.frontier:
        toy = Toy(numbers, out, growth.draft)
        growth.extend(np.array([guesses(toy.path(node + 1)) for node in growth.frontier]))
    return growth.done()


def independent(out: tuple[int, ...], numbers: Numbers) -> Draft:
    """Two independent draws a node, two levels."""
    nodes: list[tuple[int, int]] = []
    rows = []
    level = [(-1, out)]
    for depth in range(min(2, LENGTH - len(out))):
        source, following = numbers.noise(len(out) + depth), []
        for node, path in level:
            for _ in range(2):
                x = pick(guesses(path), source.random())
                following.append((len(nodes), (*path, x)))
                nodes.append((node, x))
                rows.append(guesses(path))
        level = following
    return tree(*nodes)._replace(q=np.array(rows))


def said_to_be_drawn(out: tuple[int, ...], numbers: Numbers) -> Draft:
    """Fault: a tree of the likeliest tokens with a q."""
    draft = grown("best", 6, out, numbers)
    toy = Toy(numbers, out, draft)
    return draft._replace(q=np.array([guesses(toy.path(int(p) + 1)) for p in draft.parent]))


def only_likely(out: tuple[int, ...], numbers: Numbers) -> Draft:
    """Fault: siblings that are not likely enough are dropped."""
    draft = grown("rsd-c", 7, out, numbers)
    toy, keep = Toy(numbers, out, draft), []
    for i, p in enumerate(draft.parent.tolist()):
        if guesses(toy.path(p + 1))[draft.tokens[i]] > 0.15 and (p < 0 or p in keep):
            keep.append(i)
    return draft.only(np.array(keep, int))


KINDS: dict[str, Callable[[tuple[int, ...], Numbers], Draft]] = {
    "chain": lambda out, numbers: grown("chain", 3, out, numbers),
    "rsd-c": lambda out, numbers: grown("rsd-c", 7, out, numbers),
    "rsd-s": lambda out, numbers: grown("rsd-s", 6, out, numbers),
    "sequoia": lambda out, numbers: grown("sequoia", 6, out, numbers),
    "multi": lambda out, numbers: grown("multi", 6, out, numbers),
    "best": lambda out, numbers: grown("best", 5, out, numbers),
    "cut": lambda out, numbers: grown("rsd-s", 9, out, numbers).head(5),  # where a step has no room
    "iid": independent,
    "said-to-be-drawn": said_to_be_drawn,
    "only-likely": only_likely,
}


def write(verifier: Any, kind: str, numbers: Numbers, target: Callable[..., Any] = Toy) -> tuple[int, ...]:
    out: tuple[int, ...] = ()
    while len(out) < LENGTH:
        draft = KINDS[kind](out, numbers)
        accept = verifier.verify(target(numbers, out, draft), draft)
        out = (*out, *(int(draft.tokens[i]) for i in accept.path), accept.bonus)
    return out[:LENGTH]


def counts(verifier: Any, kind: str, numbers: type[Numbers] = Numbers, runs: int = RUNS) -> Any:
    seen, source = np.zeros((V,) * LENGTH, np.int64), random.Random(zlib.crc32(kind.encode()))
    for _ in range(runs):
        seen[write(verifier, kind, numbers(source))] += 1
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verifier", "kind"),
    [
        (v, k)
        for v in LOSSLESS.values()
        for k in ("chain", "rsd-c", "rsd-s", "sequoia", "multi", "best", "cut")
        if k != "best" or isinstance(v, Rejection)  # matched with samples by all of them
    ]
    + [
        (Siblings(replace=True), "iid"),
        (Siblings(), "iid"),
        (Siblings(replace=True), "chain"),
        (Match(), "rsd-s"),
    ],
    ids=str,
)
def test_goodness_of_fit(verifier: Any, kind: str) -> None:
    p, distance, most = fit(counts(verifier, kind))
    print(f"total variation {distance:.4f} (at most {most:.4f}), p {p:.3f}")
    assert p > 1e-3, f"chi-square p {p:.2g}"
    assert distance <= most, f"total variation {distance:.4f} above {most:.4f}"


def _said(part: Any) -> str:
    """The same name in every process."""
    return part if isinstance(part, str) else getattr(part, "__name__", type(part).__name__)


FAULTS = [
    (NoResidual(), "rsd-c", Numbers),
    (Siblings(replace=True), "rsd-c", Numbers),
    (Siblings(replace=True), "rsd-s", Numbers),
    (Siblings(), "said-to-be-drawn", Numbers),
    (MultiDraft(), "said-to-be-drawn", Numbers),
    (Siblings(), "only-likely", Numbers),
    (Rejection(), "chain", SameForAll),
    (Siblings(), "rsd-c", SameForAll),
    (MultiDraft(), "multi", SameForAll),
    (Rejection(), "chain", Drafters),
]


@pytest.mark.slow
@pytest.mark.parametrize(("verifier", "kind", "numbers"), FAULTS, ids=_said)
def test_planted_faults_fail(verifier: Any, kind: str, numbers: type[Numbers]) -> None:
    p, distance, most = fit(counts(verifier, kind, numbers))
    print(f"total variation {distance:.4f} (at most {most:.4f}), p {p:.1g}")
    assert p < 1e-6
    assert distance > most


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("kind", ["chain", "rsd-c", "rsd-s", "sequoia", "multi", "best"])
def test_the_engines_target_and_numbers_are_the_toys(name: str, kind: str) -> None:
    """The fit runs on a cached target for speed; the engine's own gives the same texts."""
    free = SimpleNamespace(advance=len, rollback=lambda n: None, mask=lambda allowed: allowed.fill(True))

    def engines(numbers: Any, out: tuple[int, ...], draft: Draft) -> Any:
        seq = SimpleNamespace(
            request=SimpleNamespace(temperature=1.0, seed=numbers.seed), branch=0, tokens=[*PROMPT, *out],
            n_prompt=len(PROMPT), constraint=free,
        )  # fmt: skip
        stream, own = _trees.noise(seq)(1), numbers.noise(len(out) + 1)  # type: ignore[arg-type]
        assert stream.random() == own.random()
        toy = Toy(numbers, out, draft)
        logits = np.log([toy.probs(row) for row in range(1 + draft.n)])
        return NodeTarget(seq, draft, logits, (), V)  # type: ignore[arg-type]

    for seed in range(40):
        assert write(LOSSLESS[name], kind, Keyed(seed)) == write(LOSSLESS[name], kind, Keyed(seed), engines)


@pytest.mark.parametrize("name", LOSSLESS)
def test_what_was_not_drawn_is_matched(name: str) -> None:
    for seed in range(60):
        assert write(LOSSLESS[name], "best", Keyed(seed)) == write(Match(), "best", Keyed(seed))


@pytest.mark.parametrize(
    ("verifier", "kind", "n"),
    [
        (Rejection(), "chain", 1),
        (Siblings(), "rsd-c", 3),
        (Siblings(), "rsd-s", 2),
        (MultiDraft(), "multi", 3),
    ],
)
def test_measured_acceptance(verifier: Any, kind: str, n: int) -> None:
    """At the root and, of those that get there, one level down, within 3 sigma of what is computed."""
    runs, source = 4000, random.Random(5)
    found = np.zeros((2, 2))  # trials and hits expected, level by level
    hits, var = np.zeros(2), np.zeros(2)

    def chance(path: tuple[int, ...], children: int) -> float:
        p, q = probs(path), guesses(path)
        return greedy(p, q, children) if kind == "multi" else 1 - refused(p, q, children, False)

    for _ in range(runs):
        numbers = Numbers(source)
        draft = KINDS[kind]((), numbers)
        path = verifier.verify(Toy(numbers, (), draft), draft).path
        if kind == "rsd-s" or n == 1:
            levels = 1  # beams cut some children off
        else:
            levels = 1 + len(path[:1])
        at: tuple[int, ...] = ()
        for level in range(levels):
            node = path[level - 1] if level else -1
            children = int((draft.parent == node).sum())
            if children:
                expected = chance(at, children)
                found[:, level] += 1, expected
                var[level] += expected * (1 - expected)
                hits[level] += len(path) > level
            at = (*at, int(draft.tokens[path[level]])) if len(path) > level else at
    assert (found[0] > 0)[0]
    assert (np.abs(hits - found[1]) <= 3 * np.sqrt(var) + 1e-9).all(), (hits / found[0], found[1] / found[0])


# ------------------------------------------------------------------------------- typical acceptance


def test_typical_acceptance_is_not_the_targets_law() -> None:
    _, distance, most = fit(counts(Typical(), "best", runs=6000))
    assert distance > most + 0.01
    _, distance, most = fit(counts(Typical(epsilon=1.0, delta=1e6), "best", runs=6000))
    assert distance <= most
