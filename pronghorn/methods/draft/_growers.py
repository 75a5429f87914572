"""How the kinds of `_trees.py` choose the children of nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Probs = NDArray[np.float64]
Noise = Callable[[int], np.random.Generator]
Child = tuple[int, int, float]  # parent, token, score


def draws(q: Probs, n: int, source: np.random.Generator) -> list[int]:
    """n tokens drawn one after the other without replacement, fewer where q has no more."""
    out: list[int] = []
    left, total = q, np.cumsum(q)
    n = min(n, int(np.count_nonzero(q)))
    while len(out) < n:
        at = int(np.searchsorted(total, source.random() * total[-1], side="right"))
        if at == len(q):  # the product can round up to the sum
            at = int(np.flatnonzero(left)[-1])
        if at not in out:
            out.append(at)
            continue
        left = q.copy()  # to draw until it is another is the same, but where few are left it takes long
        left[out] = 0.0
        total = np.cumsum(left)
    return out


def top(q: Probs, n: int) -> list[int]:
    """The n likeliest tokens, likeliest first, fewer where q has no more."""
    n = min(n, len(q))
    best = np.argpartition(-q, n - 1)[:n] if 0 < n < len(q) else np.arange(n)
    return [int(t) for t in best[np.lexsort((best, -q[best]))] if q[t] > 0]


class Shaped:
    """A shape fixed beforehand: the parent of each node, best nodes first."""

    def __init__(self, parents: Sequence[int], noise: Noise, greedy: bool) -> None:
        self.sampled, self._noise = not greedy, noise
        self._kids: dict[int, list[int]] = {}
        for i, p in enumerate(parents):
            self._kids.setdefault(p, []).append(i)
        self._place: list[int] = []  # of each node, in the shape
        self._last: list[int] = []

    def grow(self, depth: int, frontier: Sequence[int], q: Probs) -> list[Child]:
        source, out, first = self._noise(depth), [], len(self._place)
        for node, row in zip(frontier, q, strict=True):
            kids = self._kids.get(self._place[node] if node >= 0 else -1, [])
            tokens = self._choose(row, len(kids), source) if self.sampled else top(row, len(kids))
            out += [(node, t, sure(row, t, rank, self.sampled)) for rank, t in enumerate(tokens)]
            self._place += kids[: len(tokens)]
        self._last = list(range(first, len(self._place)))
        return out

    def _choose(self, q: Probs, n: int, source: np.random.Generator) -> list[int]:
        return draws(q, n, source)

    def open(self) -> list[int]:
        return [i for i in self._last if self._place[i] in self._kids]

    def order(self) -> list[int]:
        return sorted(range(len(self._place)), key=lambda i: self._place[i])

    def rows(self, q: Probs, tokens: Sequence[int]) -> Probs:
        return np.broadcast_to(q, (len(tokens), len(q)))


class Multi(Shaped):
    def _choose(self, q: Probs, n: int, source: np.random.Generator) -> list[int]:
        fixed = top(q, n - 1)
        rest = q.copy()
        rest[fixed] = 0.0
        return fixed + draws(rest, min(n, 1), source)

    def rows(self, q: Probs, tokens: Sequence[int]) -> Probs:
        """Certainty for the likeliest ones; for the last, q without those."""
        out = np.zeros((len(tokens), len(q)))
        for row, token in zip(out[:-1], tokens[:-1], strict=True):
            row[token] = 1.0
        if tokens:
            out[-1] = q
            out[-1, list(tokens[:-1])] = 0.0
            out[-1] /= out[-1].sum()
        return out


class Beam:
    """Stochastic beam search. Of all paths of a level those with the largest perturbed log-probability G
    stay. A node's first child has its G, and e^-G of the next ones are the later arrivals of a Poisson
    process whose rate is the probability left at the node: that is the truncated Gumbel distribution of the
    paper, without its differences of large numbers."""

    def __init__(self, width: int, depth: int, noise: Noise, greedy: bool) -> None:
        self.sampled, self._width, self._depth, self._noise = not greedy, width, depth, noise
        self._log = [0.0]  # log-probability of the pending token, then of each node
        self._g = [0.0]
        self._last: list[int] = []

    def grow(self, depth: int, frontier: Sequence[int], q: Probs) -> list[Child]:
        source = self._noise(depth)
        pool: list[tuple[float, int, float, Child]] = []
        for node, row in zip(frontier, q, strict=True):
            log, g, rest = self._log[node + 1], self._g[node + 1], row.copy()
            width = self._width if depth < self._depth else 0
            tokens = draws(row, width, source) if self.sampled else top(row, width)
            for rank, token in enumerate(tokens):
                own = log + float(np.log(row[token]))
                if not self.sampled:
                    g = own
                elif rank:
                    wait = np.log(source.standard_exponential()) - np.log(rest.sum())
                    g = -float(np.logaddexp(-g, wait - log))
                rest[token] = 0.0
                pool.append((-g, len(pool), own, (node, token, sure(row, token, rank, self.sampled))))
        best = sorted(pool)[: self._width]
        first = len(self._log) - 1
        self._log += [own for _, _, own, _ in best]
        self._g += [-minus for minus, _, _, _ in best]
        self._last = list(range(first, first + len(best)))
        return [child for _, _, _, child in best]

    def open(self) -> list[int]:
        return self._last

    def order(self) -> list[int]:
        return list(range(len(self._log) - 1))

    def rows(self, q: Probs, tokens: Sequence[int]) -> Probs:
        return np.broadcast_to(q, (len(tokens), len(q)))


class Best:
    """The `nodes` likeliest paths so far: what a level adds may push older nodes out."""

    sampled = False

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._log: list[float] = []
        self._last: list[int] = []

    def grow(self, depth: int, frontier: Sequence[int], q: Probs) -> list[Child]:
        pool: list[tuple[float, int, Child]] = []
        for node, row in zip(frontier, q, strict=True):
            before = self._log[node] if node >= 0 else 0.0
            for token in top(row, self._nodes):
                own = before + float(np.log(row[token]))
                pool.append((-own, len(pool), (node, token, sure(row, token, 0, False))))
        pool.sort()
        first = len(self._log)
        self._log += [-minus for minus, _, _ in pool[: self._nodes]]
        left = set(self.order())
        kept = [i for i in range(first, len(self._log)) if i in left]  # the first ones: they are sorted
        self._log = self._log[: first + len(kept)]
        self._last = kept
        return [child for _, _, child in pool[: len(kept)]]

    def open(self) -> list[int]:
        return self._last

    def order(self) -> list[int]:
        return sorted(range(len(self._log)), key=lambda i: -self._log[i])[: self._nodes]

    def rows(self, q: Probs, tokens: Sequence[int]) -> Probs:
        raise NotImplementedError("its tokens are not drawn")


def sure(q: Probs, token: int, rank: int, sampled: bool) -> float:
    """How likely a node is to stand once its parent does; of a drawn one without a look at its token."""
    if not sampled:
        return min(max(float(q[token]), 1e-6), 1 - 1e-6)
    first = min(max(float(q.max()), 1e-6), 1 - 1e-6)
    return float(max(first * (1 - first) ** rank, 1e-6))
