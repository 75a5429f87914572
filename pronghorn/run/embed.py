"""Text embeddings from a language model's last layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import RequestError
from pronghorn.types import Rows

if TYPE_CHECKING:
    from pronghorn.engine import Engine


def embed(engine: Engine, prompts: list[list[int]]) -> NDArray[np.float32]:
    """(n, width) mean of the head's input over each prompt's tokens, scaled to unit length. Nothing is
    stored: every prompt runs whole, in the tail."""
    out = []
    for ids in prompts:
        if not ids:
            raise RequestError("an embedding needs at least one token")
        if len(ids) > engine.bound.context:
            raise RequestError(
                f"{len(ids)} tokens do not fit the context of {engine.bound.context}: shorten the text"
            )
        kv = engine.store.new()
        n = len(ids)
        chain = np.arange(n, dtype=np.int32)
        zeros = np.zeros(n, np.int32)
        want = zeros.copy()
        want[-1] = 1
        rows = Rows(
            np.asarray(ids, np.int32), chain, np.full(n, n, np.int32), zeros, chain - np.int32(1), want
        )
        mean = engine.runner.run(rows, [kv], True).taps["final"].mean(axis=0)
        out.append(mean / max(float(np.linalg.norm(mean)), 1e-12))
    return np.asarray(out, np.float32)
