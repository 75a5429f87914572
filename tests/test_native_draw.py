"""`_native.draw` against the same point in float64 probabilities side by side; walks against
`Draft.walk`, and random numbers against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pronghorn import rng
from pronghorn.ops.cpu import _native
from pronghorn.types import Draft


@given(
    st.integers(1, 5000),
    st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 99),
)
def test_the_token_under_the_point(n: int, temperature: float, u: float, seed: int) -> None:
    x = np.random.default_rng(seed).normal(0, 4, n).astype(np.float32)
    if n > 3:
        x[n // 2] = -np.inf
    z = x.astype(np.float64) / temperature
    p = np.exp(z - z.max())
    ends = np.cumsum(p) / p.sum()
    token = _native.draw(x, temperature, u)
    assert 0 <= token < n
    assert p[token] > 0
    begins = ends[token] - p[token] / p.sum()
    assert begins - 1e-5 <= u <= ends[token] + 1e-5


def test_points_fall_in_proportion() -> None:
    x = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    drawn = np.bincount([_native.draw(x, 1.0, (i + 0.5) / 800) for i in range(800)])
    assert drawn.tolist() == [400, 200, 100, 100]


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-40, float("nan")])
def test_a_temperature_that_overflows_is_refused(temperature: float) -> None:
    assert _native.draw(np.zeros(4, np.float32), temperature, 0.5) == -1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 17, 1500])
def test_logits_that_are_not_finite_are_refused(bad: float, at: int) -> None:
    x = np.zeros(1501, np.float32)
    x[at] = bad
    assert _native.draw(x, 1.0, 0.5) == -1
    assert _native.draw(np.full(5, -np.inf, np.float32), 1.0, 0.5) == -1
    assert _native.draw(np.zeros(0, np.float32), 1.0, 0.5) == -1


KEYS = st.integers(0, 2**64 - 1)


@given(KEYS, KEYS, KEYS, KEYS)
def test_numbers_are_those_of_numpy(seed: int, branch: int, pos: int, purpose: int) -> None:
    assert _native.uniform(seed, branch, pos, purpose) == rng.stream(seed, branch, pos, purpose).random()


@st.composite
def trees(draw: st.DrawFn) -> Draft:
    n = draw(st.integers(0, 12))
    parents = [draw(st.integers(-1, i - 1)) for i in range(n)]
    tokens = draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))  # few: equal siblings occur
    return Draft(np.array(tokens, np.int32), np.array(parents, np.int32))


@given(trees(), st.sampled_from([0.0, 0.5, 2.0]), st.integers(0, 99))
def test_a_walk_is_that_of_single_draws(draft: Draft, temperature: float, seed: int) -> None:
    n, pos = 5, 40
    rows = np.random.default_rng(seed).integers(0, 4, (draft.n + 1, n + 3)).astype(np.float32)
    levels = [0, *draft.levels()]

    def choose(row: int) -> int:
        if temperature == 0:
            return int(rows[row, :n].argmax())
        return _native.draw(
            rows[row, :n].copy(), temperature, rng.uniform(seed, 1, pos + levels[row], rng.DRAW)
        )

    visited, tokens, whole = _native.walk(rows, n, draft.tokens, draft.parent, temperature, seed, 1, pos)
    accept = draft.walk(choose)
    assert whole
    assert visited == [0, *(i + 1 for i in accept.path)]
    assert tokens == [*(int(draft.tokens[i]) for i in accept.path), accept.bonus]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("at", [0, 31, 1499])
def test_a_walk_ends_where_logits_are_not_finite(bad: float, temperature: float, at: int) -> None:
    chain = Draft.chain([3, 3])
    rows = np.full((3, 1500), -5, np.float32)
    rows[:, 3] = 9
    rows[1, at] = bad
    assert _native.walk(rows, 1500, chain.tokens, chain.parent, temperature, 0, 0, 0) == ([0], [3], False)
    nothing = np.full((3, 1500), -np.inf, np.float32)
    assert _native.walk(nothing, 1500, chain.tokens, chain.parent, temperature, 0, 0, 0) == ([], [], False)


def test_the_first_of_equal_logits_is_taken() -> None:
    rows = np.full((1, 3000), -1, np.float32)
    rows[0, [1030, 2047, 2900]] = 4
    none = Draft.empty()
    assert _native.walk(rows, 3000, none.tokens, none.parent, 0.0, 0, 0, 0) == ([0], [1030], True)
    assert _native.walk(rows, 1000, none.tokens, none.parent, 0.0, 0, 0, 0) == ([0], [0], True), (
        "the rest is padding"
    )


def test_a_walk_needs_a_row_for_each_node() -> None:
    chain = Draft.chain([1, 2])
    with pytest.raises(ValueError, match="row of logits"):
        _native.walk(np.zeros((2, 4), np.float32), 4, chain.tokens, chain.parent, 0.0, 0, 0, 0)
    with pytest.raises(ValueError, match="tokens than logits"):
        _native.walk(np.zeros((3, 4), np.float32), 5, chain.tokens, chain.parent, 0.0, 0, 0, 0)
