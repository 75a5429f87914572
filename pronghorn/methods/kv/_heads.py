"""Heads that retrieve: those that the user names, or the best of a calibration table."""

from __future__ import annotations

import numpy as np

from pronghorn.errors import MethodError
from pronghorn.kv.view import Bools, KVView


def check(owner: str, heads: tuple[int, ...], table: str, share: float) -> None:
    """Raises `MethodError`."""
    if any(h < 0 for h in heads):
        raise MethodError(f"{owner}: heads are numbered from 0")
    if heads and table:
        raise MethodError(f"{owner}: heads and table both say which heads retrieve: give one of them")
    if not 0 <= share <= 1:
        raise MethodError(f"{owner}: share is from 0 to 1, not {share}")


def retrieving(view: KVView, heads: tuple[int, ...], table: str, share: float) -> Bools:
    """(L, H). heads: layer * (KV heads) + head, those that the model does not have left out."""
    if table:
        best: Bools = view.tables[table].best(share)
        return best
    out = np.zeros((view.n_layers, view.n_kv), bool)
    out.reshape(-1)[[h for h in heads if h < out.size]] = True
    return out
