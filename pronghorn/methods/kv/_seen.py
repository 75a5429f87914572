"""Which rows a query sees."""

from __future__ import annotations

import numpy as np

from pronghorn.kv.view import Bools, KVView
from pronghorn.types import FOREVER, Ints


def sees(view: KVView, layer: int, pos: Ints) -> Bools:
    """(H, r, n) bool: which rows queries at positions pos (r,) see."""
    row, at = view.pos[layer][:, None], pos[:, None]
    window = int(view.window[layer]) or FOREVER
    return np.asarray(view.valid[layer][:, None] & (row <= at) & (row > at - window))
