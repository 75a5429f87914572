"""A drafter's tree and a trie of continuations as one tree."""

from __future__ import annotations

import numpy as np

from pronghorn.methods.draft._trie import Trie, trie
from pronghorn.types import Draft, Ints


def pruned(rows: Ints, first: dict[int, float], nodes: int) -> Trie:
    """The trie of the continuations that begin as the drafter would, its `nodes` of greatest weight. first:
    allowed first tokens and their chances; all are allowed, with equal chances, where it is empty."""
    if not first:
        return trie(rows, nodes)
    allowed = np.isin(rows[:, 0], list(first))
    found = trie(rows[allowed], len(first) + 4 * nodes)._replace(total=len(rows))
    weight = np.zeros(len(found.token))
    begin: list[int] = []
    for i, p in enumerate(found.parent.tolist()):
        begin.append(i if p < 0 else begin[p])
        weight[i] = first[int(found.token[begin[i]])] * found.times[i]
    kept = np.sort(np.argsort(-weight, kind="stable")[:nodes])  # a child weighs no more and lies behind
    number = np.full(len(weight) + 1, -1, np.int32)
    number[kept] = np.arange(len(kept))
    return Trie(found.token[kept], number[found.parent[kept]], found.times[kept], found.total)


class Fused:
    """A tree without equal siblings. sure: of each node, its chance once its parent stands."""

    def __init__(self, made: Draft) -> None:
        self._at: dict[tuple[int, int], int] = {}
        self._token: list[int] = []
        self._parent: list[int] = []
        self._sure: list[float] = []
        ranks: dict[int, int] = {}
        number: list[int] = []
        score = made.score.tolist()
        for i, (token, p) in enumerate(zip(made.tokens.tolist(), made.parent.tolist(), strict=True)):
            ranks[p] = rank = ranks.get(p, 0) + 1
            sure = min(max(score[i], 0.0), 1.0) if score else 0.5 / rank**2
            number.append(self._add(number[p] if p >= 0 else -1, token, sure))

    def _add(self, parent: int, token: int, sure: float) -> int:
        at = self._at.setdefault((parent, token), len(self._token))
        if at == len(self._token):
            self._token.append(token)
            self._parent.append(parent)
            self._sure.append(sure)
        self._sure[at] = max(self._sure[at], sure)
        return at

    def first(self, n: int) -> dict[int, float]:
        """The n likeliest first tokens and their chances."""
        roots = [i for i, p in enumerate(self._parent) if p < 0]
        best = sorted(roots, key=lambda i: (-self._sure[i], i))[:n]
        return {self._token[i]: self._sure[i] for i in best}

    def join(self, found: Trie, doubt: float) -> None:
        """Add a trie's paths along what is there."""
        number: list[int] = []
        chances = found.chance(doubt).tolist()
        for token, p, sure in zip(found.token.tolist(), found.parent.tolist(), chances, strict=True):
            number.append(self._add(number[p] if p >= 0 else -1, token, sure))

    def draft(self) -> Draft:
        """Nodes by the chance of their paths, parents first."""
        chance: list[float] = []
        for p, sure in zip(self._parent, self._sure, strict=True):
            chance.append(sure if p < 0 else chance[p] * sure)
        best = sorted(range(len(chance)), key=lambda i: (-chance[i], i))
        number = {-1: -1} | {i: n for n, i in enumerate(best)}
        return Draft(
            np.array([self._token[i] for i in best], np.int32),
            np.array([number[self._parent[i]] for i in best], np.int32),
            score=np.array([self._sure[i] for i in best]),
        )  # fmt: skip
