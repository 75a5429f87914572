"""The most that any verifier can accept of n drafts of one token (Hu et al., 2025, arXiv 2502.18779).

Optimal transport between the target p and the drafts has the value 1 + min over sets S of p(S) - Q(S), where
Q(S) is the chance that all drafts lie in S, and the best S is a prefix of the tokens sorted by p / q. With
replacement Q(S) = q(S)^n. Without it, think of tokens that arrive at random times, x at rate q(x): the drafts
are the first n, and they are all in S if n of S arrive before the first of the others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Probs = NDArray[np.float64]

POINTS = 200  # of the integral over arrival times
PREFIXES = 32  # looked at, then as many near the best; to leave some out can only raise the bound


def bound(p: Probs, q: Probs, n: int, replace: bool = False) -> float:
    """The largest acceptance of n drafts of q."""
    some = p + q > 0
    p, q = p[some], q[some]
    if not replace:
        n = min(n, int(np.count_nonzero(q)))  # there are no more to draw
    with np.errstate(divide="ignore"):
        order = np.argsort(np.where(q > 0, p / np.where(q > 0, q, 1), np.inf), kind="stable")
    p, q = p[order], q[order]
    within = _together if replace else _apart
    first, last, least = 1, len(p), 0.0
    while True:
        sizes = np.unique(np.linspace(first, last, min(last - first + 1, PREFIXES)).astype(int))
        gaps = [float(p[:m].sum()) - within(q, int(m), n) for m in sizes]
        least, at = min(least, *gaps), int(np.argmin(gaps))
        first, last = int(sizes[max(at - 1, 0)]), int(sizes[min(at + 1, len(sizes) - 1)])
        if len(sizes) == 1 or (np.diff(sizes) == 1).all():
            return 1 + least


def greedy(p: Probs, q: Probs, n: int) -> float:
    """Acceptance of the greedy scheme: n - 1 likeliest tokens of q, and one drawn from the others."""
    fixed = np.argsort(-q, kind="stable")[: n - 1]
    rest = q.copy()
    rest[fixed] = 0
    total = rest.sum()
    drawn = rest / total if total > 0 else rest
    return float(p[fixed].sum() + np.minimum(p, drawn).sum())


def _together(q: Probs, m: int, n: int) -> float:
    return float(q[:m].sum() ** n)


def _apart(q: Probs, m: int, n: int) -> float:
    """The chance that n drafts without replacement are among the first m tokens."""
    others = float(q[m:].sum())
    if others <= 0:
        return 1.0
    # over u, the chance that none of the others has arrived yet; double exponential points lie dense at both
    # ends, where everything may happen
    s = np.linspace(-4, 4, POINTS)
    e = np.pi * np.sinh(s)
    time = np.logaddexp(0, -e) / others
    weight = np.pi * np.cosh(s) * (s[1] - s[0]) / (2 + 2 * np.cosh(e))
    fewer = np.zeros((n, POINTS))  # chance that just 0, 1, ... n - 1 have arrived
    fewer[0] = 1
    for rate in q[:m]:
        there = -np.expm1(-rate * time)
        stays = fewer * (1 - there)
        stays[1:] += fewer[:-1] * there
        fewer = stays
    return float(((1 - fewer.sum(axis=0)) * weight).sum())
