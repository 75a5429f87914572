"""Every verifier: what it keeps is a path from the root, and each token of it the target's."""

from __future__ import annotations

import numpy as np
import pytest

from pronghorn.errors import MethodError
from pronghorn.methods.draft._trees import Growth, grower
from pronghorn.methods.verify.greedy import Greedy
from pronghorn.types import Draft, Guarantee
from tests.conformance import _find
from tests.conformance._rig import TableTarget, random_draft

NAMES = _find.names("verify")
V = 6


def cases(seed: int, temperature: float) -> tuple[Draft, TableTarget]:
    r = np.random.default_rng(seed)
    draft = random_draft(r, int(r.integers(0, 14)), V)
    probs = r.dirichlet(np.ones(V), 1 + draft.n)
    return draft, TableTarget(probs, draft.depths(), temperature, seed)


def drawn(seed: int, temperature: float) -> tuple[Draft, TableTarget]:
    """A tree whose siblings were drawn without replacement; some tokens neither side ever writes."""
    r = np.random.default_rng(seed)

    def some(n: int) -> np.ndarray:
        rows = r.dirichlet(np.full(V, 0.5), n) * (r.random((n, V)) < 0.8)
        rows[:, 1] += 1e-9
        return rows / rows.sum(axis=1, keepdims=True)

    growth = Growth(grower(("rsd-c", "rsd-s", "multi", "sequoia")[seed % 4], 9, 3, lambda depth: r), 3)
    while growth.frontier:
        growth.extend(some(len(growth.frontier)))
    draft = growth.done()
    return draft, TableTarget(some(1 + draft.n), draft.depths(), temperature, seed)


def temperatures(name: str) -> tuple[float, ...]:
    return (0.0,) if _find.defaults("verify", name).traits.greedy else (0.0, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_path_runs_from_the_root_to_a_node(name: str) -> None:
    verifier = _find.defaults("verify", name)
    for seed in range(300):
        for temperature in temperatures(name):
            draft, target = cases(seed, temperature)
            accept = verifier.verify(target, draft)
            before = -1
            for node in accept.path:
                assert draft.parent[node] == before
                before = node
            assert 0 <= accept.bonus < V


@pytest.mark.parametrize("name", NAMES)
def test_drawn_drafts(name: str) -> None:
    """The path runs from the root, nothing stands that the target never writes, and lossless verifiers give
    at temperature 0 what `match` gives."""
    verifier = _find.defaults("verify", name)
    stood = 0
    for seed in range(300):
        for temperature in temperatures(name):
            draft, target = drawn(seed, temperature)
            accept = verifier.verify(target, draft)
            before = -1
            for node in accept.path:
                assert draft.parent[node] == before
                assert target.rows[before + 1][draft.tokens[node]] > 0
                before = node
            assert target.rows[before + 1][accept.bonus] > 0
            stood += len(accept.path)
            if temperature == 0 and verifier.traits.guarantee is not Guarantee.APPROXIMATE:
                assert accept == draft.walk(target.draw)
    assert stood > 100


@pytest.mark.parametrize("name", NAMES)
def test_what_was_not_drawn_is_matched(name: str) -> None:
    """A verifier that keeps the distribution gives any draft without q what plain decoding gives."""
    verifier = _find.defaults("verify", name)
    if verifier.traits.guarantee is Guarantee.APPROXIMATE:
        pytest.skip("keeps tokens that the target would not write")
    for seed in range(300):
        for temperature in temperatures(name):
            draft, target = cases(seed, temperature)
            assert verifier.verify(target, draft) == draft.walk(target.draw)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_are_the_targets(name: str) -> None:
    """At temperature 0 the kept tokens and the bonus are those of plain greedy decoding, and no token
    that could be kept is left."""
    verifier = _find.defaults("verify", name)
    for seed in range(300):
        draft, target = cases(seed, 0.0)
        accept = verifier.verify(target, draft)
        at = -1
        for node in accept.path:
            assert draft.tokens[node] == np.argmax(target.rows[at + 1])
            at = node
        assert accept.bonus == np.argmax(target.rows[at + 1])
        children = [int(draft.tokens[i]) for i in range(draft.n) if draft.parent[i] == at]
        assert accept.bonus not in children


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_draft_is_plain_decoding(name: str) -> None:
    verifier = _find.defaults("verify", name)
    for temperature in temperatures(name):
        for seed in range(50):
            probs = np.random.default_rng(seed).dirichlet(np.ones(V), 1)
            target = TableTarget(probs, [], temperature, seed)
            accept = verifier.verify(target, Draft.empty())
            assert accept.path == []
            if verifier.traits.guarantee is Guarantee.EXACT:
                assert accept.bonus == TableTarget(probs, [], temperature, seed).draw(0)


@pytest.mark.parametrize("name", NAMES)
def test_only_visited_rows_are_asked(name: str) -> None:
    """Shaping and masking a row costs time; a walk pays for the rows it passes."""
    verifier = _find.defaults("verify", name)
    for seed in range(100):
        draft, target = cases(seed, 0.0)
        accept = verifier.verify(target, draft)
        allowed = {0} | {n + 1 for n in accept.path}
        assert set(target.asked) <= allowed


@pytest.mark.parametrize("name", NAMES)
def test_exact_means_the_same_text_with_any_draft(name: str) -> None:
    """A seed gives the same text with no draft, a right one, a wrong one, and a tree."""
    verifier = _find.defaults("verify", name)
    if verifier.traits.guarantee is not Guarantee.EXACT:
        pytest.skip("promises the distribution, not the draw")
    r = np.random.default_rng(3)
    table = r.dirichlet(np.ones(V), (V, V))  # of the last two tokens

    def text(seed: int, temperature: float, draft_of: object) -> list[int]:
        out = [0, 1]
        while len(out) < 40:
            draft = draft_of(out)  # type: ignore[operator]
            rows, depth = [], draft.depths()
            for node in range(-1, draft.n):
                path, at = [], node
                while at >= 0:
                    path.append(int(draft.tokens[at]))
                    at = int(draft.parent[at])
                full = out + path[::-1]
                rows.append(table[full[-2], full[-1]])
            target = TableTarget(rows, depth, temperature, seed)
            target.depth = [len(out) + int(d) for d in target.depth]
            accept = verifier.verify(target, draft)
            out += [int(draft.tokens[n]) for n in accept.path] + [accept.bonus]
        return out[:40]

    for temperature in temperatures(name):
        for seed in range(10):
            plain = text(seed, temperature, lambda out: Draft.empty())
            right = text(seed, temperature, lambda out, p=plain: Draft.chain(p[len(out) : len(out) + 4]))
            wrong = text(seed, temperature, lambda out: Draft.chain([5, 5, 5]))
            tree = text(seed, temperature, lambda out: random_draft(np.random.default_rng(len(out)), 9, V))
            assert plain == right == wrong == tree


def test_greedy_refuses_sampling() -> None:
    draft, target = cases(1, 1.0)
    with pytest.raises(MethodError, match="temperature 0"):
        Greedy().verify(target, draft)
