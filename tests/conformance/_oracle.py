"""The slow path that a policy is held against: the small model with every row ever computed, keys before
rotation, and dense attention under a mask.

It shares no code with the store or the runner. What a plan keeps is applied as a mask of -inf (and, when
positions move, by rotating the raw keys to their new positions), what it rewrites by turning the new keys
back to position 0, and what it adds to scores is added. So agreement shows that dropping, packing,
re-rotating and rewriting bytes did what the plan says.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pronghorn.model.bind import Bound
from pronghorn.types import BIAS, KVPlan


def _rotated(x: Any, pos: Any, freq: Any) -> Any:
    """x (..., dim) turned by pos (...) positions, as complex numbers."""
    half = x.shape[-1] // 2
    angle = (np.asarray(pos, np.float32)[..., None] * freq).astype(np.float64)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], axis=-1)


class Oracle:
    """plans: what was kept at each committed length, as `Store.apply` gets it; groups: members of each
    group as the store numbers them."""

    def __init__(
        self, bound: Bound, groups: Any, plans: list[tuple[int, KVPlan | None]], moves: bool
    ) -> None:
        self.b, self.groups, self.moves = bound, groups, moves
        self.plans = dict(plans)
        n = (bound.n_layers, bound.n_kv)
        self.k = np.zeros((*n, 0, bound.head_dim))  # unrotated
        self.v = np.zeros((*n, 0, bound.head_dim))
        self.alive = np.zeros((*n, 0), bool)
        self.pos = np.zeros((*n, 0))
        self.bias = np.zeros((*n, 0))
        self.next_pos = 0

    def _w(self, key: str) -> Any:
        if key in self.b.mats:
            packed, _ = self.b.mats[key]
            return packed.fields["w"].astype(np.float64)
        return self.b.vecs[key].astype(np.float64)

    def _norm(self, x: Any, key: str) -> Any:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * self._w(key)

    def logits(self, ids: list[int]) -> Any:
        """(len(ids), n_vocab), one row at a time."""
        return np.stack([self._row(t) for t in ids])

    def _row(self, token: int) -> Any:
        b = self.b
        at = self.k.shape[2]
        grow = ((0, 0), (0, 0), (0, 1))
        self.k = np.pad(self.k, (*grow, (0, 0)))
        self.v = np.pad(self.v, (*grow, (0, 0)))
        self.alive = np.pad(self.alive, grow, constant_values=True)
        self.bias = np.pad(self.bias, grow)
        self.pos = np.pad(self.pos, grow, constant_values=self.next_pos)
        freq = b.ropes[0].inv_freq(0)
        x = self._w("embed")[token]
        for i in range(b.n_layers):
            h = self._norm(x, f"{i}.n1")
            q = (self._w(f"{i}.q") @ h).reshape(b.n_heads, -1)
            self.k[i, :, at] = (self._w(f"{i}.k") @ h).reshape(b.n_kv, -1)
            self.v[i, :, at] = (self._w(f"{i}.v") @ h).reshape(b.n_kv, -1)
            q = _rotated(q, np.full(b.n_heads, self.next_pos), freq)
            k = _rotated(self.k[i], self.pos[i], freq)
            out = np.zeros((b.n_heads, b.head_dim))
            for head in range(b.n_heads):
                kv = head // (b.n_heads // b.n_kv)
                s = k[kv] @ q[head] / np.sqrt(b.head_dim) + self.bias[i, kv]
                s = np.where(self.alive[i, kv], s, -np.inf)
                e = np.exp(s - s.max())
                out[head] = e / e.sum() @ self.v[i, kv]
            x = x + self._w(f"{i}.o") @ out.reshape(-1)
            h = self._norm(x, f"{i}.n2")
            gate = self._w(f"{i}.gate") @ h
            x = x + self._w(f"{i}.down") @ (gate / (1 + np.exp(-gate)) * (self._w(f"{i}.up") @ h))
        self.next_pos += 1
        self._apply(self.plans.get(at + 1))
        return self._w("embed") @ self._norm(x, "norm")

    def _apply(self, plan: KVPlan | None) -> None:
        if plan is None:
            return
        freq = self.b.ropes[0].inv_freq(0)
        for g, members in enumerate(self.groups):
            for i, (layer, head) in enumerate(members):
                held = np.flatnonzero(self.alive[layer, head])
                if BIAS in plan.notes:
                    self.bias[layer, head, held] = plan.notes[BIAS][layer, head, : len(held)]
                if g in plan.values:
                    rows, k, v = plan.values[g]
                    at = held[rows]
                    self.k[layer, head, at] = _rotated(k[:, i], -self.pos[layer, head, at], freq)
                    self.v[layer, head, at] = v[:, i]
        for g, keep in plan.keep.items():
            for layer, head in self.groups[g]:
                held = np.flatnonzero(self.alive[layer, head])
                kept = held[keep]
                self.alive[layer, head] = False
                self.alive[layer, head, kept] = True
                if self.moves:
                    self.pos[layer, head, kept] = np.arange(len(kept))
        if self.moves and plan.keep:
            self.next_pos = int(self.alive[0, 0].sum())
