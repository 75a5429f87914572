"""`_native.draw` against the same point in float64 probabilities side by side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pronghorn.ops.cpu import _native


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
