"""What an eviction policy sees of a sequence, and the verbs with which it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pronghorn.kv.layout import PAGE
from pronghorn.kv.look import Look
from pronghorn.types import Ints, KVPlan, Rewrite

if TYPE_CHECKING:
    from pronghorn.kv.store import SeqKV, Store

Floats = NDArray[Any]
Bools = NDArray[np.bool_]
Runs = Callable[["SeqKV", Sequence[int], int], dict[str, Floats]]  # rows, tokens behind them, prompt's length


def nobody(kv: SeqKV, ids: Sequence[int], n_prompt: int) -> dict[str, Floats]:
    raise RuntimeError("nobody runs rows for this view")


def rounded(score: Floats, digits: int = 4) -> Floats:
    """Scores rounded to `digits` significant decimal digits, so that the last bits of a matrix product,
    which depend on how many rows it had, cannot decide between two rows."""
    x = np.asarray(score, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.floor(np.log10(np.abs(x)))
    scale = 10.0 ** (digits - 1 - np.where(np.isfinite(exponent), exponent, 0.0))
    return np.where(np.isfinite(x), np.round(x * scale) / scale, x)


class Scored(NamedTuple):
    """What a policy thinks of rows: rows (L, H, n), larger is better, rounded; always (L, H, n) bool, or what
    broadcasts to it: rows that stay before any other; budget: rows that a head keeps, a number, (L, 1) or
    (L, H); notes to write in any case (`KVPlan.notes`)."""

    rows: Floats
    always: Bools
    budget: int | Ints
    notes: dict[str, Floats] = {}  # noqa: RUF012 - read only


class KVView:
    """The stored rows of a sequence at a barrier, by layer and KV head: sealed ones, then open ones.

    Arrays are padded to the longest head: L layers, H KV heads, n rows. `valid` tells rows from padding.
    Policies score heads; where the store groups heads coarsely, scores are averaged over a group.

    ids: tokens committed, `length` of them; n_prompt: of the prompt; seed: the request's; next_pos: position
    of the next token; scale, window, softcap: of each layer's attention, (L,), 0 for none; tables: those that
    traits name.
    """

    def __init__(
        self, store: Store, kv: SeqKV, n_prompt: int, seed: int, ids: Sequence[int], run: Runs
    ) -> None:  # fmt: skip
        self._store, self._kv, self._run = store, kv, run
        self.seed, self.ids = seed, ids
        self.n_prompt, self.length, self.next_pos = n_prompt, kv.length, kv.next_pos
        self.n_layers, self.n_kv = store.n_layers, store.n_kv
        self.n, self.tables = kv.n_rows, store.tables
        self.scale = np.array([scale for scale, _, _ in store.attention])
        self.window = np.array([window for _, window, _ in store.attention], np.int32)
        self.softcap = np.array([softcap for _, _, softcap in store.attention])

    def _rows(self, g: int) -> int:
        return self._kv.sealed[g].n + self._kv.n_open

    def _each(self) -> list[tuple[int, int, int]]:
        return [(layer, head, g) for (layer, head), (g, _) in self._store.group_of.items()]

    @property
    def groups(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """(layer, head) of each group's members, which keep the same rows; plans go by its number."""
        return self._store.sealed_layout.groups

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

    def mass(self, layer: int, q: Floats, pos: Ints) -> Floats:
        """(n_heads, n): the weight that queries q (n_heads, r, dim) at positions pos (r,) give to each stored
        row, summed over them in their order. A row is seen by queries at its position or later, within the
        layer's window. float32, as the other two (float64 from a float64 store)."""
        return self._store.look(self._kv, layer, q, pos, Look.SUMS)

    def weights(self, layer: int, q: Floats, pos: Ints) -> Floats:
        """(n_heads, r, n): each of those weights; they sum to 1 along n where a query sees anything."""
        return self._store.look(self._kv, layer, q, pos, Look.WEIGHTS)

    def logits(self, layer: int, q: Floats, pos: Ints) -> Floats:
        """(n_heads, r, n): the scores they come from, scaled and capped; -inf where a row is not seen."""
        return self._store.look(self._kv, layer, q, pos, Look.LOGITS)

    def note(self, name: str) -> Floats:
        """(L, H, n) float32: what a policy noted of each row; 0 where it did not."""
        out = np.zeros((self.n_layers, self.n_kv, self.n), np.float32)
        groups = self._store.sealed_layout.groups
        for (layer, head), (g, i) in self._store.group_of.items():
            s = self._kv.sealed[g]
            out[layer, head, : s.n] = s.noted(name, np.arange(s.n, dtype=np.int32), len(groups[g]))[i]
        return out

    def total(self, name: str, taps: dict[str, Floats]) -> Floats:
        """(L, H, n) float32: the note `name` grown by the weight that the queries of `taps` give to each row,
        averaged over the query heads of a KV head. To be noted again."""
        total = self.note(name)
        for layer, q in enumerate(taps["q"]):
            total[layer] += self.by_kv_head(self.mass(layer, q, taps["q_pos"]))
        return total

    def angles(self, layer: int, by: Ints) -> Floats:
        """(r, m): the angles by which queries and keys are turned over `by` (r,) positions: value i of a head
        with value i + m, those from 2 m on not at all."""
        rope = self._store.ropes[layer]
        freq = rope.inv_freq(max(self.n_prompt, self.length)) if rope else np.zeros(0)
        return by[:, None] * freq.astype(np.float64)

    @contextmanager
    def behind(self, ids: Sequence[int]) -> Iterator[tuple[KVView, dict[str, Floats]]]:
        """The rows as they would be if tokens `ids`, no more than a step has, came next (theirs are the last
        of each head), and their queries, as `plan` is shown them. All are gone afterwards."""
        kv = self._store.fork(self._kv)
        try:
            taps = self._run(kv, ids, self.n_prompt)
            yield self._store.view(kv, self.n_prompt, self.seed, [*self.ids, *ids], self._run), taps
        finally:
            kv.free()

    def last(self, n: int | Ints) -> Bools:
        """(L, H, n) bool: the last n rows of each head, or of each (L, H, 1)."""
        held = self.valid.sum(axis=-1, keepdims=True)
        return np.asarray(self.valid & (np.arange(self.n) >= held - n))

    def by_kv_head(self, x: Floats) -> Floats:
        """Mean of x (n_heads, ...) over the query heads of each KV head."""
        return np.asarray(x.reshape(self.n_kv, -1, *x.shape[1:]).mean(axis=1))

    def keep_top(self, score: Floats, budget: int | Ints, always: Bools | None = None) -> KVPlan:
        """Keep the `budget` rows of highest score in each group, ties to the earlier row; rows in
        `always` come first. All broadcast: budget to (L, H), of a group the mean, the others to (L, H, n)."""
        shape = (self.n_layers, self.n_kv, self.n)
        s = np.broadcast_to(np.asarray(score, np.float64), shape)
        most = np.broadcast_to(np.asarray(budget), shape[:2])
        if always is not None:
            s = np.where(np.broadcast_to(always, shape), np.inf, s)
        keep: dict[int, Ints] = {}
        for g, members in enumerate(self._store.sealed_layout.groups):
            n = self._rows(g)
            mean = np.mean([s[layer, head, :n] for layer, head in members], axis=0)
            room = round(float(np.mean([most[m] for m in members])))
            top = np.argsort(-mean, kind="stable")[: max(room, 1)]
            keep[g] = np.sort(top).astype(np.int32)
        return KVPlan(keep)

    def plan(self, scored: Scored) -> KVPlan | None:
        """Keep the best rows of each group, as many as the budget says (see `keep_top`); write the notes."""
        plan = self.keep_top(scored.rows, scored.budget, scored.always)
        if all(len(rows) == self._rows(g) for g, rows in plan.keep.items()):
            plan.keep.clear()
        plan.notes.update(scored.notes)
        return plan if plan.keep or plan.notes else None

    def kept(self, plan: KVPlan) -> Bools:
        """(L, H, n) bool: the rows that a plan keeps."""
        out = np.zeros(self.valid.shape, bool)
        for layer, head, g in self._each():
            out[layer, head, plan.keep.get(g, slice(self._rows(g)))] = True
        return out

    def rewrite(self, plan: KVPlan, k: Floats, v: Floats, changed: Bools) -> KVPlan:
        """`plan`, and rows that it keeps have the values of k, v (L, H, n, dim) where `changed` (L, H, n)."""
        changed = changed & self.kept(plan)
        for g, members in enumerate(self.groups):
            rows = np.flatnonzero(np.any([changed[m] for m in members], axis=0)).astype(np.int32)
            if len(rows):
                new = (np.stack([a[m][rows] for m in members], axis=1) for a in (k, v))
                plan.values[g] = Rewrite(rows, *new)
        return plan

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
