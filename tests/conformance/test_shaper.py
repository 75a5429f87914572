"""Every shaper: pure in the path, in the canonical order, and what its paper defines."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pronghorn.errors import MethodError
from pronghorn.methods.shape.frequency_penalty import FrequencyPenalty
from pronghorn.methods.shape.logit_bias import LogitBias
from pronghorn.methods.shape.min_p import MinP
from pronghorn.methods.shape.presence_penalty import PresencePenalty
from pronghorn.methods.shape.repetition_penalty import RepetitionPenalty
from pronghorn.methods.shape.temperature import Temperature
from pronghorn.methods.shape.top_k import TopK
from pronghorn.methods.shape.top_p import TopP
from tests.conformance import _find

NAMES = _find.names("shape")
V = 16
PATH = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3], np.int32)


def logits(seed: int = 0, n: int = V) -> Any:
    return 3 * np.random.default_rng(seed).standard_normal(n)


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize("name", NAMES)
def test_pure_in_the_path(name: str) -> None:
    """The same logits and path give the same result whatever was shaped between, and the path is not
    written to."""
    shaper = _find.defaults("shape", name)
    path = PATH.copy()
    path.flags.writeable = False
    first = shaper.shape(logits(), path, 4)
    for seed in range(1, 5):
        shaper.shape(logits(seed), PATH[: seed + 4], 4)
    again = shaper.shape(logits(), path, 4)
    assert first.shape == (V,)
    assert first.dtype == np.float64
    assert (first == again).all()


@pytest.mark.parametrize("name", NAMES)
def test_something_always_stays(name: str) -> None:
    shaper = _find.defaults("shape", name)
    for seed in range(50):
        out = shaper.shape(logits(seed), PATH, 4)
        assert not np.isnan(out).any()
        assert np.isfinite(out).any()
        masked = logits(seed)
        masked[np.arange(V) != 7] = -np.inf  # all but one token removed by a constraint
        out = shaper.shape(masked, PATH, 4)
        assert np.flatnonzero(np.isfinite(out)).tolist() == [7]


@pytest.mark.parametrize("name", NAMES)
def test_order_is_canonical(name: str) -> None:
    """Penalties and bias 0, temperature 1, truncations 2: what removes tokens comes last."""
    shaper = _find.defaults("shape", name)
    assert shaper.order in (0, 1, 2)
    removes = any(np.isinf(shaper.shape(logits(s, 400), PATH, 4)).any() for s in range(20))
    assert removes == (shaper.order == 2)


def test_temperature() -> None:
    assert Temperature(0.5).shape(logits(), PATH, 4) == pytest.approx(logits() * 2)
    tie = np.array([1.0, 3.0, 3.0, 2.0])
    assert Temperature(0).shape(tie, PATH, 4).tolist() == [-math.inf, 3.0, -math.inf, -math.inf]


@given(st.integers(1, 20), st.lists(st.integers(-3, 3), min_size=1, max_size=20))
def test_top_k_is_a_stable_sort(k: int, values: list[int]) -> None:
    x = np.array(values, np.float64)
    keep = np.argsort(-x, kind="stable")[:k]
    out = TopK(k).shape(x.copy(), PATH, 4)
    assert sorted(np.flatnonzero(np.isfinite(out))) == sorted(keep)
    assert (out[keep] == x[keep]).all()


@given(st.floats(0.01, 0.999), st.integers(0, 1000))
def test_top_p_is_the_smallest_nucleus(p: float, seed: int) -> None:
    x = logits(seed)
    prob = softmax(x)
    out = TopP(p).shape(x.copy(), PATH, 4)
    keep = np.isfinite(out)
    assert prob[keep].sum() >= p - 1e-12
    assert prob[keep].sum() - prob[keep].min() < p + 1e-12, "one token less would do"
    assert prob[keep].min() >= prob[~keep].max(initial=0)


@given(st.floats(0.001, 1), st.integers(0, 1000))
def test_min_p(p: float, seed: int) -> None:
    x = logits(seed)
    prob = softmax(x)
    keep = np.isfinite(MinP(p).shape(x.copy(), PATH, 4))
    sure = np.abs(prob / (p * prob.max()) - 1) > 1e-9  # of values at the edge either will do
    assert (keep == (prob >= p * prob.max()))[sure].all()


def test_limits_are_the_identity() -> None:
    for shaper in (TopP(1.0), MinP(0.0), TopK(V), Temperature(1.0), RepetitionPenalty(1.0), LogitBias()):
        assert (shaper.shape(logits(), PATH, 4) == logits()).all(), shaper


def test_repetition_penalty_counts_prompt_and_answer_once() -> None:
    x = logits()
    seen = sorted(set(PATH.tolist()))
    want = x.copy()
    for t in seen:
        want[t] = x[t] / 1.3 if x[t] > 0 else x[t] * 1.3
    assert (RepetitionPenalty(1.3).shape(x.copy(), PATH, 4) == want).all()
    assert (want[seen] < x[seen]).all()


def test_presence_and_frequency_count_the_answer_alone() -> None:
    x = logits()
    answer = PATH[4:].tolist()  # 5 9 2 6 5 3
    presence = PresencePenalty(0.5).shape(x.copy(), PATH, 4)
    frequency = FrequencyPenalty(0.5).shape(x.copy(), PATH, 4)
    for t in range(V):
        assert presence[t] == x[t] - 0.5 * (t in answer)
        assert frequency[t] == x[t] - 0.5 * answer.count(t)
    for s in (PresencePenalty(0.5), FrequencyPenalty(0.5)):
        assert (s.shape(x.copy(), PATH, len(PATH)) == x).all()


def test_logit_bias() -> None:
    out = LogitBias("3:-100,5:2.5").shape(logits(), PATH, 4) - logits()
    assert out[3] == pytest.approx(-100)
    assert out[5] == pytest.approx(2.5)
    assert np.count_nonzero(np.abs(out) > 1e-12) == 2
    with pytest.raises(MethodError, match="token 99"):
        LogitBias("99:1").shape(logits(), PATH, 4)


@pytest.mark.parametrize("bad", ["3", "3:", ":4", "a:1", "3:x", "-1:2", "3:101", "3:nan", "3:1,3:2", "3=1"])
def test_logit_bias_refuses(bad: str) -> None:
    with pytest.raises(MethodError, match="bias"):
        LogitBias(bad)


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [
        (Temperature, "value", -1.0), (Temperature, "value", math.nan), (TopK, "k", 0),
        (TopP, "p", 0.0), (TopP, "p", 1.5), (MinP, "p", -0.1), (MinP, "p", math.nan),
        (RepetitionPenalty, "penalty", 0.0), (PresencePenalty, "penalty", 3.0),
        (FrequencyPenalty, "penalty", -2.5),
    ],
)  # fmt: skip
def test_ranges(cls: Any, field: str, value: float) -> None:
    with pytest.raises(MethodError, match=field):
        cls(**{field: value})
