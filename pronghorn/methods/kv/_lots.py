"""Numbers drawn by lot for rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pronghorn import rng
from pronghorn.kv.view import KVView

BLOCK = 1024  # positions whose lots are drawn together


def lots(view: KVView, purpose: int) -> NDArray[np.float64]:
    """(L, H, n) numbers in [0, 1), keyed by the request's seed, layer, head and position: a row's is the same
    at every barrier, in any company, and whatever else is held. All branches of a request have the same, as
    they share its prompt."""
    block, at = np.divmod(view.pos, BLOCK)
    out = np.zeros(view.pos.shape)
    for b in np.unique(block[view.valid]):
        drawn = rng.stream(view.seed, 0, int(b), purpose).random((view.n_layers, view.n_kv, BLOCK))
        layer, head, row = np.nonzero(block == b)
        out[layer, head, row] = drawn[layer, head, at[layer, head, row]]
    return out
