"""Queries and keys of a model that reads texts, as policies see them: after rotation, as they are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.calibrate.channels import Channels, found
from pronghorn.calibrate.codebooks import SIZE, Codebooks, Floats, fitted
from pronghorn.calibrate.looking import EVERY, Looks, mark
from pronghorn.errors import RequestError
from pronghorn.kv.view import KVView
from pronghorn.llm import LLM
from pronghorn.seq import Request
from pronghorn.types import KVPlan

KEYS = 8192  # of a head, at most, that its codebooks are made of
GROUPS = 8  # codes of a key

Texts = Sequence[Sequence[int]]
Tick = Callable[[int, int], None]
See = Callable[[NDArray[Any], NDArray[Any]], None]


def nothing(q: NDArray[Any], k: NDArray[Any]) -> None:
    pass


@dataclass(frozen=True, eq=False)
class Watch(Looks):
    """A policy that keeps every row and shows `see` new queries (layers, KV heads, g, r, dim) and all keys
    (layers, KV heads, n, dim), of which the last r are new."""

    see: See = nothing
    rows: list[int] = field(default_factory=list)

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        q = taps["q"]
        self.rows.append(q.shape[2])
        if q.shape[2]:
            self.see(q.reshape(len(q), view.n_kv, -1, *q.shape[2:]), view.k)
        return None


def watched(llm: LLM, texts: Texts, see: See, tick: Tick = lambda done, total: None) -> int:
    """Shows `see` texts that `llm`, opened with `use=[Watch()]`, reads; tokens that it saw. Raises
    `RequestError`."""
    watch = Watch(see)
    most = llm.engine.bound.context - 1
    for i, ids in enumerate(texts):
        tick(i, len(texts))
        if len(ids) > 1:
            llm.engine.run([Request(tuple(ids[:most]), 1, ignore_eos=True, use=(watch,))])
    if not sum(watch.rows):
        raise RequestError("the texts were not looked at: they need two tokens or more")
    return sum(watch.rows)


def find_channels(llm: LLM, name: str, texts: Texts, tick: Tick = lambda done, total: None) -> Channels:
    """The table of the model that `llm` runs, which must have been opened with `use=[Watch()]`."""
    sums = ChannelSums()
    tokens = watched(llm, texts, sums, tick)
    return Channels(name, mark(llm), tokens, found(np.asarray(sums.total)))


def find_codebooks(
    llm: LLM, name: str, texts: Texts, groups: int = GROUPS, tick: Tick = lambda done, total: None
) -> Codebooks:
    """The same of codebooks. Raises `RequestError` for fewer keys than a book has centroids."""
    looks = sum(-(-min(len(ids), llm.engine.bound.context - 1) // EVERY) for ids in texts if len(ids) > 1)
    samples = Samples(KEYS, looks)
    tokens = watched(llm, texts, samples, tick)
    keys, metric = np.concatenate(samples.keys, axis=2), np.asarray(samples.metric)
    if keys.shape[2] < SIZE:
        raise RequestError(f"the texts have {keys.shape[2]} keys, and a book of {SIZE} needs more: give more")
    books: list[list[tuple[Floats, Floats]]] = []
    for layer in range(len(keys)):
        tick(layer, len(keys))
        books.append([fitted(k, h, groups) for k, h in zip(keys[layer], metric[layer], strict=True)])
    turn, book = (np.array([[pair[i] for pair in row] for row in books]) for i in (0, 1))
    return Codebooks(name, mark(llm), tokens, turn, book)


class ChannelSums:
    """`See` that adds up |q_c k_c|: total (layers, KV heads, dim)."""

    total: NDArray[np.float64] | float = 0.0

    def __call__(self, q: NDArray[Any], k: NDArray[Any]) -> None:
        seen = np.cumsum(np.abs(k), axis=2, dtype=np.float64) / np.arange(1, k.shape[2] + 1)[:, None]
        self.total = self.total + (np.abs(q).sum(axis=2) * seen[:, :, -q.shape[3] :]).sum(axis=2)


class Samples:
    """`See` that adds up q q^T and keeps keys of up to `most` rows, as many of every look while they fit."""

    def __init__(self, most: int, looks: int) -> None:
        self.each = max(1, most // max(1, looks))
        self.metric: NDArray[np.float64] | float = 0.0  # (layers, KV heads, dim, dim)
        self.keys: list[NDArray[np.float32]] = []  # (layers, KV heads, some rows, dim)

    def __call__(self, q: NDArray[Any], k: NDArray[Any]) -> None:
        flat = q.reshape(*q.shape[:2], -1, q.shape[-1]).astype(np.float64)
        self.metric = self.metric + np.swapaxes(flat, -1, -2) @ flat
        new = k[:, :, -q.shape[3] :]
        at = np.unique(np.linspace(0, new.shape[2] - 1, min(self.each, new.shape[2])).astype(np.int64))
        self.keys.append(np.ascontiguousarray(new[:, :, at], np.float32))
