"""Monte Carlo tree search over a table of next tokens, without chance: the same table gives the same tree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

Row = Sequence[tuple[int, float]]  # tokens and their chances, likeliest first


class Searched(NamedTuple):
    """Nodes by falling visits, parents first. chance: of each once its parent stands."""

    token: list[int]
    parent: list[int]
    chance: list[float]


def search(
    pair: tuple[int, int], row: Callable[[tuple[int, int]], Row], simulations: int, depth: int,
    explore: float, nodes: int,
) -> Searched:  # fmt: skip
    """The `nodes` most visited nodes after so many descents from the last two tokens of a text.

    A descent goes to the child of greatest Q + explore * P * sqrt(visits of all siblings) / (1 + its own)
    until it comes to one that was never visited; the chance of the whole path there is its value, and Q is
    the mean value of the descents through a node. Of equals the one is taken that `row` gives first.
    """
    token, parent, chance, level = [pair[1]], [-1], [1.0], [0]
    visits, value = [0], [0.0]
    children: list[range | None] = [None]
    pairs = [pair]
    for _ in range(simulations):
        at, path, p = 0, [0], 1.0
        while True:
            under = children[at]
            if under is None:
                first = len(token)
                for t, c in row(pairs[at]) if level[at] < depth else ():
                    token.append(t)
                    parent.append(at)
                    chance.append(c)
                    level.append(level[at] + 1)
                    visits.append(0)
                    value.append(0.0)
                    children.append(None)
                    pairs.append((pairs[at][1], t))
                under = children[at] = range(first, len(token))
            if not under:
                break
            wide = explore * math.sqrt(visits[at])
            best, score = -1, -1.0
            for i in under:
                n = visits[i]
                s = (value[i] / n if n else 0.0) + wide * chance[i] / (1 + n)
                if s > score:
                    best, score = i, s
                if not n:
                    break  # those behind are less likely, and were not visited either
            at = best
            path.append(at)
            p *= chance[at]
            if not visits[at]:
                break
        for i in path:
            visits[i] += 1
            value[i] += p
    kept = sorted((i for i in range(1, len(token)) if visits[i]), key=lambda i: (-visits[i], i))[:nodes]
    number = {0: -1} | {i: n for n, i in enumerate(kept)}
    return Searched([token[i] for i in kept], [number[parent[i]] for i in kept], [chance[i] for i in kept])
