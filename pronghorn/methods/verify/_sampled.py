"""What the verifiers of drawn drafts share.

`draft.q` says of each node what it was drawn from. Siblings drawn one after the other from their parent's
distribution may repeat it, or each have what was left of it: to take the elder siblings out is the same for
both. A node that nobody drew has a certain row (its token 1, all else 0). So a draft of either kind keeps the
target's distribution under any of these verifiers. So does one of independent draws from one distribution: a
token that is there twice is passed over, and what is left was drawn without replacement.

Numbers of a position: 1 for what is emitted once all children are refused, 2 and above for the children.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.slots import Target
from pronghorn.types import Accept, Draft

Probs = NDArray[np.float64]
Choose = Callable[[int, list[int]], tuple[int, int]]  # row, its children -> (child that stands or -1, token)

EMIT, CHILD = 1, 2  # purposes
NOTHING = 1e-12  # a residual below is rounding: p and q are equal, and what was refused could have stood


def drawn(p: Target, draft: Draft) -> bool:
    """Whether it matters what the tokens were drawn from."""
    return p.temperature > 0 and len(draft.q) > 0


def children(draft: Draft) -> dict[int, list[int]]:
    out: dict[int, list[int]] = {}
    for i, parent in enumerate(draft.parent.tolist()):
        out.setdefault(parent, []).append(i)
    return out


def walk(p: Target, draft: Draft, choose: Choose) -> Accept:
    """Go down while `choose` lets a child stand; after a leaf the target draws."""
    below, node = children(draft), -1
    path: list[int] = []
    while own := below.get(node):
        node, token = choose(node + 1, own)
        if node < 0:
            return Accept(path, token)
        path.append(node)
    return Accept(path, p.draw(node + 1))


def one_by_one(
    p: Target, draft: Draft, row: int, own: Sequence[int], replace: bool = False
) -> tuple[int, int]:
    """Recursive rejection: each child stands with probability min(1, p / q); a refused one leaves
    p = norm([p - q]+) to the next, and the last of these p is drawn from when none stands."""
    left = p.probs(row)
    gone: list[int] = []
    for i, node in enumerate(own):
        token = int(draft.tokens[node])
        q = row_of(draft.q[node], len(left), () if replace else gone)
        gone.append(token)
        if q[token] <= 0:  # there already, or could not be drawn: as if it were not there
            continue
        if p.uniform(row, CHILD + i) * q[token] < left[token]:
            return node, token
        rest = residual(left, q)
        if not len(rest):
            if left[token] > 0:
                return node, token
            continue
        left = rest
    return -1, pick(left, p.uniform(row, EMIT))


def row_of(q: NDArray[Any], n: int, gone: Sequence[int] = ()) -> Probs:
    """A draft's distribution over the target's n tokens, without those that are gone."""
    out = np.zeros(n)
    out[: len(q)] = q[:n]
    if gone:
        out[list(gone)] = 0.0
    total = out.sum()
    return out / total if total > 0 else out


def residual(p: Probs, q: Probs) -> Probs:
    """norm([p - q]+), empty where p and q are equal."""
    rest = np.maximum(p - q, 0.0)
    total = rest.sum()
    return rest / total if total > NOTHING else np.zeros(0)


def pick(p: Probs, u: float) -> int:
    """The token at u of the distribution p."""
    total = np.cumsum(p)
    at = int(np.searchsorted(total, u * total[-1], side="right"))
    return at if at < len(p) else int(np.flatnonzero(p)[-1])  # the product can round up to the sum
