"""What queries see of stored rows: the weights of attention themselves, for policies.

Only some rows of weights are ever held. A store looks with `by_ops` unless the runner has something faster
(`NativeRunner.look`); both read rows as they are stored, packed ones included.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pronghorn.ops import ref
from pronghorn.types import Ints

if TYPE_CHECKING:
    from pronghorn.kv.store import SeqKV

BLOCK = 64  # query rows that are looked at together


class Look(IntEnum):
    """SUMS: weights summed over the queries, (n_heads, n); WEIGHTS: each, (n_heads, r, n); LOGITS: what they
    are the softmax of, -inf where a query does not see a row."""

    SUMS = 0
    WEIGHTS = 1
    LOGITS = 2


class Looks(Protocol):
    def __call__(self, kv: SeqKV, layer: int, q: NDArray[Any], pos: Ints, what: Look) -> NDArray[Any]:
        """q (n_heads, r, dim) rotated queries at positions pos (r,); n is that of the head with most rows."""
        ...


def room(kv: SeqKV, q: NDArray[Any], what: Look, dtype: Any) -> NDArray[Any]:
    """Where rows that no head has stay as they are here."""
    shape = (len(q), kv.n_rows) if what is Look.SUMS else (*q.shape[:2], kv.n_rows)
    return np.full(shape, -np.inf if what is Look.LOGITS else 0, dtype)


def by_ops(kv: SeqKV, layer: int, q: NDArray[Any], pos: Ints, what: Look) -> NDArray[Any]:
    """See `Looks`; on the store's own arrays, in its compute dtype."""
    store, ops = kv.store, kv.store.ops
    scale, window, softcap = store.attention[layer]
    out = room(kv, q, what, np.float64 if ops.name == "float64" else np.float32)
    g = len(q) // store.n_kv
    for h in range(store.n_kv):
        k, where, bias = store.keys(kv, layer, h)
        n, mine = len(where), slice(h * g, h * g + g)
        for first in range(0, len(pos), BLOCK):
            rows = slice(first, first + BLOCK)
            at = pos[rows, None]
            seen = where[None] <= at
            if window:
                seen &= where[None] > at - window
            x = ops.cast(ops.array(np.ascontiguousarray(q[mine, rows].swapaxes(0, 1))))
            s = ref.scores(ops, x, k, ops.array(seen), scale, softcap, bias)  # (rows, g, n)
            if what is not Look.LOGITS:
                s = ref.softmax(ops, s)
            part = ops.numpy(s).swapaxes(0, 1)
            if what is not Look.SUMS:
                out[mine, rows, :n] = part
                continue
            for i in range(part.shape[1]):  # row by row: the same sum for any blocks
                out[mine, :n] += part[:, i]
    return out
