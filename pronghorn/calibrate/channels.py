"""Which channels of keys a head's scores come from (Double sparsity, Yang et al., 2024, arXiv 2408.07092).

A channel's size is the mean of |q_c k_c| over the queries of texts and the keys that each of them sees, after
rotation, summed over the query heads that share a KV head.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.calibrate.table import SIZES, File

Sizes = tuple[tuple[tuple[float, ...], ...], ...]


@dataclass(frozen=True)
class Channels:
    """size: for each layer and KV head, of each channel, over the head's largest."""

    model: str
    fingerprint: str
    tokens: int
    size: Sizes

    @property
    def shape(self) -> tuple[int, ...]:
        """Layers, KV heads and channels."""
        return len(self.size), len(self.size[0]), len(self.size[0][0])

    def best(self, layer: int, head: int, n: int) -> NDArray[np.int64]:
        """The n largest, largest first; ties go to the earlier channel."""
        return np.argsort(-np.array(self.size[layer][head]), kind="stable")[:n]

    def write(self, path: Path) -> None:
        """Raises `CheckpointError` where it cannot."""
        File(str(path), "channels").write(asdict(self))


def read(path: str) -> Channels:
    """Raises `MethodError` for a file that cannot be read or is no table of channels."""
    file = File(path, "channels")
    found = file.read([f.name for f in fields(Channels)])
    size = file.numbers("size", found["size"], SIZES)
    return Channels(found["model"], found["fingerprint"], found["tokens"], size)


def found(total: NDArray[Any]) -> Sizes:
    """Sizes of sums (layers, KV heads, dim)."""
    top = total.max(axis=-1, keepdims=True)
    size = np.round(total / np.where(top > 0, top, 1), 6)
    return tuple(tuple(tuple(head) for head in layer) for layer in size.tolist())
