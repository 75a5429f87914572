"""What an eviction policy sees of a sequence, and the two verbs with which it answers."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.kv.layout import PAGE
from pronghorn.types import Ints, KVPlan

if TYPE_CHECKING:
    from pronghorn.kv.store import SeqKV, Store

Floats = NDArray[Any]
Bools = NDArray[np.bool_]


def rounded(score: Floats, digits: int = 4) -> Floats:
    """Scores rounded to `digits` significant decimal digits, so that the last bits of a matrix product,
    which depend on how many rows it had, cannot decide between two rows."""
    x = np.asarray(score, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.floor(np.log10(np.abs(x)))
    scale = 10.0 ** (digits - 1 - np.where(np.isfinite(exponent), exponent, 0.0))
    return np.where(np.isfinite(x), np.round(x * scale) / scale, x)


class KVView:
    """The stored rows of a sequence at a barrier, by layer and KV head: sealed ones, then open ones.

    Arrays are padded to the longest head: L layers, H KV heads, n rows. `valid` tells rows from padding.
    Policies score heads; where the store groups heads coarsely, scores are averaged over a group.

    n_prompt: tokens of the prompt; length: tokens committed; next_pos: position of the next token;
    scale, window: of each layer's attention, (L,).
    """

    def __init__(self, store: Store, kv: SeqKV, n_prompt: int) -> None:
        self._store, self._kv = store, kv
        self.n_prompt, self.length, self.next_pos = n_prompt, kv.length, kv.next_pos
        self.n_layers, self.n_kv = store.n_layers, store.n_kv
        self.n = kv.n_rows
        self.scale = np.array([scale for scale, _ in store.attention])
        self.window = np.array([window for _, window in store.attention], np.int32)

    def _rows(self, g: int) -> int:
        return self._kv.sealed[g].n + self._kv.n_open

    def _each(self) -> list[tuple[int, int, int]]:
        return [(layer, head, g) for (layer, head), (g, _) in self._store.group_of.items()]

    @cached_property
    def valid(self) -> Bools:
        """(L, H, n) bool."""
        out = np.zeros((self.n_layers, self.n_kv, self.n), bool)
        for layer, head, g in self._each():
            out[layer, head, : self._rows(g)] = True
        return out

    @cached_property
    def pos(self) -> Ints:
        """(L, H, n) logical positions, -1 in padding."""
        out = np.full((self.n_layers, self.n_kv, self.n), -1, np.int32)
        for layer, head, g in self._each():
            s = self._kv.sealed[g]
            out[layer, head, : s.n] = s.pos[s.slots()]
            out[layer, head, s.n : self._rows(g)] = self._kv.open_pos[: self._kv.n_open]
        return out

    @cached_property
    def _kv_rows(self) -> tuple[Floats, Floats]:
        ops = self._store.ops
        dtype = np.float64 if ops.name == "float64" else np.float32
        k = np.zeros((self.n_layers, self.n_kv, self.n, self._store.head_dim), dtype)
        v = np.zeros_like(k)
        for layer, head, g in self._each():
            slots = self._kv.sealed[g].slots()
            n, n_open = len(slots), self._kv.n_open
            pair = self._store.sealed_rows(self._kv, layer, head)
            fresh = self._store.read_open(self._kv, layer, head, -(-n_open // PAGE))
            for out, packed, open_ in zip((k, v), pair, fresh, strict=True):
                out[layer, head, :n] = ops.numpy(packed).reshape(-1, out.shape[-1])[slots]
                out[layer, head, n : n + n_open] = ops.numpy(open_)[:n_open]
        return k, v

    @property
    def k(self) -> Floats:
        """(L, H, n, dim) keys as stored, rotated to `pos`."""
        return self._kv_rows[0]

    @property
    def v(self) -> Floats:
        """(L, H, n, dim) values."""
        return self._kv_rows[1]

    def keep_top(self, score: Floats, budget: int, always: Bools | None = None) -> KVPlan:
        """Keep the `budget` rows of highest score in each group, ties to the earlier row; rows in
        `always` come first. Both broadcast to (L, H, n)."""
        shape = (self.n_layers, self.n_kv, self.n)
        s = np.broadcast_to(np.asarray(score, np.float64), shape)
        if always is not None:
            s = np.where(np.broadcast_to(always, shape), np.inf, s)
        keep: dict[int, Ints] = {}
        for g, members in enumerate(self._store.sealed_layout.groups):
            n = self._rows(g)
            mean = np.mean([s[layer, head, :n] for layer, head in members], axis=0)
            top = np.argsort(-mean, kind="stable")[: max(budget, 1)]
            keep[g] = np.sort(top).astype(np.int32)
        return KVPlan(keep)

    def keep_where(self, keep: Bools) -> KVPlan:
        """Keep the rows where `keep`, broadcast to (L, H, n), holds for any head of the group."""
        k = np.broadcast_to(keep, (self.n_layers, self.n_kv, self.n))
        return KVPlan(
            {
                g: np.flatnonzero(np.any([k[x, h, : self._rows(g)] for x, h in members], axis=0)).astype(
                    np.int32
                )
                for g, members in enumerate(self._store.sealed_layout.groups)
            }
        )
