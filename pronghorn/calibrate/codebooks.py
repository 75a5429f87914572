"""Codebooks of keys (A2ATS, He et al., 2025): a key's codes say about how it scores with any query.

What codes lose is measured by queries: E[(q . (k - k^))^2] = (k - k^) H (k - k^)^T with H = E[q^T q] of the
query heads that share a KV head. With H = L L^T that is the plain distance of k L and k^ L, so that is where
k-means runs. Any rotation after L leaves it as it is; the one chosen makes channels independent, and deals
them out to groups of about equal volume, each of which has a book of 256 centroids: one code each.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pronghorn.calibrate.table import SIZES, File

SIZE = 256  # centroids of a book
TURNS = 12  # of k-means
LEAST = 1e-3  # of the mean of H's diagonal, added to it: no direction is free
BYTES_MOST = 512 << 20

Floats = NDArray[np.float32]


class Books(NamedTuple):
    """Of a head. turn, unturn (dim, width): q . k is (q unturn) . (k turn) but for rounding; book (groups,
    SIZE, width / groups): centroids of groups of turned channels."""

    turn: Floats
    unturn: Floats
    book: Floats


@dataclass(frozen=True, eq=False)
class Codebooks:
    """turn (layers, KV heads, dim, width), book (layers, KV heads, groups, SIZE, width / groups): see
    `Books`. Columns of `turn` that fill groups up are 0."""

    model: str
    fingerprint: str
    tokens: int
    turn: Floats
    book: Floats

    @property
    def shape(self) -> tuple[int, ...]:
        """Layers, KV heads and channels."""
        return self.turn.shape[:3]

    @property
    def groups(self) -> int:
        return int(self.book.shape[2])

    @cached_property
    def unturn(self) -> Floats:
        """Raises `LinAlgError` where there is none."""
        out = np.zeros_like(self.turn)
        for at in np.ndindex(self.turn.shape[:2]):
            used = np.flatnonzero(np.abs(self.turn[at]).max(axis=0))
            if len(used) != self.turn.shape[2]:
                raise np.linalg.LinAlgError("columns are missing")
            out[at][:, used] = np.linalg.inv(self.turn[at][:, used].astype(np.float64)).T
        return out

    def of(self, layer: int, head: int) -> Books:
        return Books(self.turn[layer, head], self.unturn[layer, head], self.book[layer, head])

    def write(self, path: Path) -> None:
        """Raises `CheckpointError` where it cannot."""
        File(str(path), "codebooks").write({
            "model": self.model, "fingerprint": self.fingerprint, "tokens": self.tokens,
            "shape": [*self.shape, self.groups], "turn": _written(self.turn, "<f4"),
            "book": _written(self.book, "<f2"),
        })  # fmt: skip


def read(path: str) -> Codebooks:
    """Raises `MethodError` for a file that cannot be read or is no table of codebooks."""
    file = File(path, "codebooks")
    found = file.read(["model", "fingerprint", "tokens", "shape", "turn", "book"], BYTES_MOST)
    shape, most = found["shape"], tuple(n for _, n in (*SIZES, SIZES[-1]))
    if (
        not isinstance(shape, list) or len(shape) != 4
        or any(type(n) is not int or not 1 <= n <= m for n, m in zip(shape, most, strict=True))
        or shape[3] > shape[2]
    ):  # fmt: skip
        raise file.bad("shape is not layers, heads, channels and groups of those")
    layers, heads, dim, groups = shape
    part = -(-dim // groups)
    turn = _read(file, "turn", found["turn"], (layers, heads, dim, groups * part), "<f4")
    book = _read(file, "book", found["book"], (layers, heads, groups, SIZE, part), "<f2")
    out = Codebooks(found["model"], found["fingerprint"], found["tokens"], turn, book)
    try:
        fine = bool(np.isfinite(out.unturn).all())
    except np.linalg.LinAlgError:
        fine = False
    if not fine:
        raise file.bad("turn cannot be undone")
    return out


def _written(a: NDArray[Any], dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(a, dtype).tobytes()).decode("ascii")


def _read(file: File, name: str, text: Any, shape: tuple[int, ...], dtype: str) -> Floats:
    size = int(np.prod(shape, dtype=np.float64)) * np.dtype(dtype).itemsize
    if not isinstance(text, str) or len(text) != -(-size // 3) * 4:
        raise file.bad(f"{name} is not {size} bytes in base 64")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise file.bad(f"{name} is not in base 64") from None
    if len(data) != size:
        raise file.bad(f"{name} is not {size} bytes in base 64")
    out = np.frombuffer(data, dtype).astype(np.float32).reshape(shape)
    if not np.isfinite(out).all():
        raise file.bad(f"{name} holds something that is no number")
    return out


@cache
def by_lot(dim: int, groups: int) -> Books:
    """For nothing that is known of a model: keys as they are, centroids by lot."""
    groups = min(groups, dim)
    part = -(-dim // groups)
    book = np.random.default_rng(0).standard_normal((groups, SIZE, part)).astype(np.float32)
    turn = np.eye(dim, groups * part, dtype=np.float32)
    return Books(turn, turn, book)


def fitted(keys: NDArray[Any], metric: NDArray[Any], groups: int) -> tuple[Floats, Floats]:
    """turn and book of a head, of keys (n, dim) and H (dim, dim), whose scale does not matter."""
    dim = len(metric)
    groups = min(groups, dim)
    part = -(-dim // groups)
    level = max(float(np.trace(metric)) / dim, 1e-30)
    factor = np.linalg.cholesky(metric / level + LEAST * np.eye(dim))
    z = keys.astype(np.float64) @ factor
    size, axes = np.linalg.eigh(np.cov(z, rowvar=False).reshape(dim, dim))
    turn = np.zeros((dim, groups * part))
    turn[:, _dealt(size, groups, part)] = factor @ axes
    z = (keys @ turn).astype(np.float32)
    book = np.stack([_means(z[:, g * part : (g + 1) * part], g) for g in range(groups)])
    return turn.astype(np.float32), book.astype(np.float16).astype(np.float32)


def _dealt(size: NDArray[Any], groups: int, part: int) -> NDArray[np.int64]:
    """A column for each axis, by variance: the largest first, to the group of the least volume so far."""
    volume, held = np.zeros(groups), np.zeros(groups, np.int64)
    out = np.zeros(len(size), np.int64)
    floor = max(float(size.max()), 1e-30) * 1e-6
    for i in np.argsort(-size, kind="stable"):
        g = int(np.argmin(np.where(held < part, volume, np.inf)))
        out[i] = g * part + held[g]
        held[g] += 1
        volume[g] += np.log(max(float(size[i]), floor) / floor) + 1e-9
    return out


def _means(z: Floats, seed: int) -> NDArray[Any]:
    """Centroids (SIZE, part) of points (n, part), by k-means from points by lot; one that loses all its
    points stays."""
    r = np.random.default_rng(seed)
    centre = z[r.choice(len(z), SIZE, replace=len(z) < SIZE)]
    for _ in range(TURNS):
        near = np.argmax(z @ centre.T - 0.5 * (centre * centre).sum(axis=1), axis=1)
        n = np.bincount(near, minlength=SIZE)
        total = np.stack([np.bincount(near, z[:, c], SIZE) for c in range(z.shape[1])], axis=1)
        mean = (total / np.maximum(n, 1)[:, None]).astype(np.float32)
        centre = np.where(n[:, None] > 0, mean, centre)
    return centre
