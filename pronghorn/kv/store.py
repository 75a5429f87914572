"""The KV store: three zones, barriers, groups, copy-on-write.

    sealed  packed by a KVFormat, indexed by a Selector, evictable by a KVPolicy; paged per group
    open    exact, always visible; paged for all layers and heads together
    tail    the rows of the step under way; the runner's own, copied into open when they are committed

A drafted row that is rejected dies in the tail, so nothing ever trims a cache. Rows become sealed only at
barriers, which are pure functions of the committed length. Pages are shared by reference count; whoever
writes to a shared page copies it first, so no method knows about sharing.

Positions, slots and groups are separate: a row's logical position is stored beside it, its slot is where
it lies, and groups (all heads, a layer's heads, one head) may keep different rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.kv.arena import Arena
from pronghorn.kv.layout import PAGE, Layout, exact_fields, grouping, lying
from pronghorn.kv.look import Looks, by_ops
from pronghorn.kv.view import KVView, Runs, nobody
from pronghorn.model.rope import Rope
from pronghorn.ops.ref import Ops, rotate
from pronghorn.slots import Asking, KVFormat, Merging, Selector
from pronghorn.types import BIAS, UNSAID, Array, Ints, KVPlan, Rewrite, Said

U64 = NDArray[np.uint64]
Floats = NDArray[np.float32]


def _ints(n: int = 0) -> Ints:
    return np.zeros(n, np.int32)


@dataclass
class Sealed:
    """The sealed rows of one group. Row j of page i is row sum(fill[:i]) + j of the group."""

    blocks: Ints = field(default_factory=_ints)  # (n_pages,)
    fill: Ints = field(default_factory=_ints)  # (n_pages,) rows in each page
    pos: Ints = field(default_factory=_ints)  # (n_pages * PAGE,) logical positions
    addr: U64 = field(default_factory=lambda: np.zeros(0, np.uint64))  # (n_pages,)
    notes: dict[str, Floats] = field(default_factory=dict)  # (members, first rows); never written to
    bias: Floats = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # that note, by slot

    @property
    def n(self) -> int:
        return int(self.fill.sum()) if len(self.fill) else 0  # asked often, and there are none mostly

    def slots(self) -> Ints:
        """Flat slot (page * PAGE + row of the page) of each row."""
        grid = np.arange(PAGE, dtype=np.int32)[None] < self.fill[:, None]
        return np.flatnonzero(grid.reshape(-1)).astype(np.int32)

    def noted(self, name: str, rows: Ints, members: int) -> Floats:
        """(members, len(rows)) of a note; 0 for rows that never had it."""
        held = self.notes.get(name, np.zeros((members, 0), np.float32))
        out = np.zeros((members, len(rows)), np.float32)
        there = rows < held.shape[1]
        out[:, there] = held[:, rows[there]]
        return out


class SeqKV:
    """The stored KV of one sequence."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.open = _ints()  # block ids
        self.open_addr = np.zeros(0, np.uint64)
        self.open_pos = _ints()  # logical positions, (len(open) * PAGE,)
        self.n_open = 0
        self.sealed = [Sealed() for _ in store.sealed_layout.groups]
        self.table = np.zeros((len(self.sealed), 4), np.int64)  # addr, fill, pos pointers; n_pages
        self.bias = np.zeros(len(self.sealed), np.int64)  # pointers, 0: none
        self.length = 0  # tokens committed, dropped ones included
        self.next_pos = 0  # logical position of the next row; differs from length once rows moved
        self.dropped = False  # rows were, or rewritten
        self.kept: dict[str, Any] = {}  # what a runner keeps of this sequence up to the next barrier
        self.rewritten = 0  # times that a plan replaced sealed pages; else they are only appended to

    @property
    def n_sealed(self) -> int:
        """Sealed rows of the fullest group."""
        return max(s.n for s in self.sealed)

    @property
    def n_rows(self) -> int:
        """Stored rows of the fullest group."""
        return self.n_sealed + self.n_open

    def free(self) -> None:
        self.store.free(self)


class Store:
    """All stored KV of an engine.

    ropes: the rotary table of each layer's keys, None where keys are not rotated by position.
    open_dtype: dtype of the exact zones. attention: (scale, window, soft cap) of each layer, 0 for none; by
    default one over the root of head_dim, and none.
    """

    def __init__(
        self, ops: Ops, n_layers: int, n_kv: int, head_dim: int, open_dtype: str, fmt: KVFormat,
        selector: Selector, rows: str, ropes: list[Rope | None],
        attention: Sequence[tuple[float, int, float]] = (),
    ) -> None:  # fmt: skip
        self.ops, self.fmt, self.selector, self.ropes = ops, fmt, selector, ropes
        self.n_layers, self.n_kv, self.head_dim = n_layers, n_kv, head_dim
        self.open_dtype = open_dtype
        self.attention = tuple(attention) or ((head_dim**-0.5, 0, 0.0),) * n_layers
        self.look: Looks = by_ops
        self.tables: Mapping[str, Any] = {}  # calibration tables that methods go by, by path
        self.packed = fmt.group > 0
        exact = exact_fields(open_dtype, head_dim)
        groups = grouping(rows, n_layers, n_kv)
        self.open_layout = Layout.of(exact, grouping("seq", n_layers, n_kv))
        own = fmt.fields(PAGE, head_dim) if self.packed else exact
        self.n_own = len(own)
        index = () if selector.dense else selector.fields(PAGE, head_dim)
        self.under = lying(fmt.under(n_layers), groups[0]) if isinstance(fmt, Merging) else {}
        more = fmt.more(PAGE, head_dim) if isinstance(fmt, Merging) and self.under else ()
        self.sealed_layout = Layout.of(own, groups, index, more, self.under)
        self.open_arena = Arena(ops, self.open_layout.block)
        self.sealed_arena = Arena(ops, self.sealed_layout.block)
        self.group_of = {m: (g, i) for g, ms in enumerate(groups) for i, m in enumerate(ms)}

    # ------------------------------------------------------------------ sequences

    def new(self) -> SeqKV:
        return SeqKV(self)

    def fork(self, kv: SeqKV) -> SeqKV:
        """The same rows, pages shared."""
        new = SeqKV(self)
        new.open, new.open_addr = kv.open.copy(), kv.open_addr.copy()
        new.open_pos, new.n_open = kv.open_pos.copy(), kv.n_open
        new.length, new.next_pos, new.dropped = kv.length, kv.next_pos, kv.dropped
        self.open_arena.keep(new.open)
        for a, b in zip(kv.sealed, new.sealed, strict=True):
            b.blocks, b.fill, b.pos, b.addr = a.blocks.copy(), a.fill.copy(), a.pos.copy(), a.addr
            b.notes, b.bias = dict(a.notes), a.bias
            self.sealed_arena.keep(b.blocks)
        self._point(new)
        return new

    def cut(self, kv: SeqKV, n: int) -> None:
        """Keep the first n rows of a sequence that dropped nothing. Below the sealed length a page must
        end there: sealed pages are kept or dropped whole."""
        sealed = kv.n_sealed
        ends = np.concatenate([[0], np.cumsum(kv.sealed[0].fill)])  # alike in all groups
        if kv.dropped or not 0 <= n <= kv.length or (n < sealed and n not in ends):
            raise ValueError(f"cannot cut {kv.length} rows ({sealed} sealed) to {n}")
        if n < sealed:
            pages = int(np.searchsorted(ends, n))
            for s in kv.sealed:
                self.sealed_arena.drop(s.blocks[pages:])
                s.blocks, s.fill = s.blocks[:pages].copy(), s.fill[:pages].copy()
                s.pos, s.addr = s.pos[: pages * PAGE].copy(), s.addr[:pages].copy()
                s.notes = {name: a[:, :n] for name, a in s.notes.items()}
            self._point(kv)
        kv.n_open = max(0, n - sealed)
        keep = -(-kv.n_open // PAGE)
        self.open_arena.drop(kv.open[keep:])
        kv.open, kv.open_addr = kv.open[:keep].copy(), kv.open_addr[:keep].copy()
        kv.open_pos = kv.open_pos[: keep * PAGE].copy()
        kv.length = kv.next_pos = n

    def share(self, kv: SeqKV, base: SeqKV, rows: int, grid: int) -> None:
        """Let `kv` refer to the pages of `base` that hold the same of their first `rows` rows, which are
        those of one text; of the sealed ones up to a multiple of `grid`, where both were sealed alike."""
        rows = min(rows, base.length)
        together = min(rows, kv.n_sealed, base.n_sealed) // grid * grid
        for a, b in zip(kv.sealed, base.sealed, strict=True):
            n = min(len(a.fill), len(b.fill))
            same = np.cumsum(a.fill[:n]) <= together
            same &= np.logical_and.accumulate(a.fill[:n] == b.fill[:n])
            self._exchange(self.sealed_arena, a.blocks, b.blocks, int(same.sum()))
            a.addr = self.sealed_arena.address(a.blocks)
        if kv.n_sealed == base.n_sealed:
            n = len(kv.open) if kv.length <= rows else max(0, rows - kv.n_sealed) // PAGE
            self._exchange(self.open_arena, kv.open, base.open, n)
            kv.open_addr = self.open_arena.address(kv.open)
        self._point(kv)

    def _exchange(self, arena: Arena, mine: Ints, other: Ints, n: int) -> None:
        at = np.flatnonzero(mine[:n] != other[:n])
        old = mine[at]
        mine[at] = other[at]
        arena.keep(mine[at])
        arena.drop(old)

    def free(self, kv: SeqKV) -> None:
        self.open_arena.drop(kv.open)
        for s in kv.sealed:
            self.sealed_arena.drop(s.blocks)
        fresh = SeqKV(self)
        kv.__dict__.update(fresh.__dict__)

    # ------------------------------------------------------------------ committing rows

    def reserve(self, kv: SeqKV, n: int) -> tuple[U64, Ints, Ints]:
        """Places for n more open rows: block address, block id and row of the page of each. The last
        page is copied first when it is shared."""
        first, last = kv.n_open, kv.n_open + n
        page, used = divmod(first, PAGE)
        if used and self.open_arena.shared(int(kv.open[page])):
            kv.open[page] = self.open_arena.copy(int(kv.open[page]))
            kv.open_addr = self.open_arena.address(kv.open)
        have = len(kv.open) * PAGE
        if last > have:
            more = self.open_arena.alloc(-(-(last - have) // PAGE))
            kv.open = np.concatenate([kv.open, more])
            kv.open_addr = self.open_arena.address(kv.open)
            kv.open_pos = np.concatenate([kv.open_pos, _ints(len(more) * PAGE)])
        if n == 1:  # what a decoding step asks for
            one = slice(page, page + 1)
            return kv.open_addr[one], kv.open[one], np.array([used], np.int32)
        at = np.arange(first, last, dtype=np.int32)
        return kv.open_addr[at // PAGE], kv.open[at // PAGE], at % PAGE

    def extend(self, kv: SeqKV, pos: Ints | range) -> None:
        """The rows last reserved now hold committed tokens at logical positions `pos`."""
        n = len(pos)
        kv.open_pos[kv.n_open : kv.n_open + n] = pos
        kv.n_open += n
        kv.length += n
        kv.next_pos = int(pos[-1]) + 1

    # ------------------------------------------------------------------ barriers

    def seal(self, kv: SeqKV, plan: KVPlan | None = None, moves: bool = False, said: Said = UNSAID) -> None:
        """Pack and index the open rows; the open zone is empty afterwards.

        plan: what to keep, rewrite and note, over sealed rows first, then open ones; rows that it leaves out
        are never packed; said: of the same rows. moves: re-rotate those kept to contiguous positions from 0.
        """
        plan = plan or KVPlan()
        for g, rows in plan.keep.items():
            if len(rows) and not 0 <= rows[0] <= rows[-1] < kv.sealed[g].n + kv.n_open:
                raise ValueError(f"a plan keeps rows {rows[0]} to {rows[-1]} of {kv.n_rows}")
        self._note(kv, plan)
        held = [s.n for s in kv.sealed]
        sealed, packed = self._cut_plan(plan, held)
        self._drop(kv, sealed, moves, said)
        for g, s in enumerate(kv.sealed):
            rows = packed.keep.get(g, np.arange(kv.n_open, dtype=np.int32))
            kv.dropped = kv.dropped or len(rows) < kv.n_open
            told = held[g] + rows
            self._append(kv, g, s, rows, packed.values.get(g), moves and g in packed.keep, said, told)
        kv.dropped = kv.dropped or bool(plan.values)
        self.open_arena.drop(kv.open)
        kv.open, kv.open_addr, kv.open_pos = _ints(), np.zeros(0, np.uint64), _ints()
        kv.n_open, kv.kept = 0, {}
        if moves and plan.keep:
            kv.next_pos = kv.n_sealed
        self._point(kv)

    def _cut_plan(self, plan: KVPlan, held: list[int]) -> tuple[KVPlan, KVPlan]:
        """What a plan says of the sealed rows, and of the open ones."""
        sealed, packed = KVPlan(), KVPlan()
        for g, rows in plan.keep.items():
            at = np.searchsorted(rows, held[g])
            sealed.keep[g], packed.keep[g] = rows[:at], rows[at:] - held[g]
        for g, (rows, k, v) in plan.values.items():
            at = np.searchsorted(rows, held[g])
            if at:
                sealed.values[g] = Rewrite(rows[:at], k[:at], v[:at])
            if at < len(rows):
                packed.values[g] = Rewrite(rows[at:] - held[g], k[at:], v[at:])
        return sealed, packed

    def _note(self, kv: SeqKV, plan: KVPlan) -> None:
        """Write a plan's notes and let those of the rows that it drops go."""
        for g, members in enumerate(self.sealed_layout.groups):
            s, n = kv.sealed[g], kv.sealed[g].n + kv.n_open
            for name, a in plan.notes.items():
                s.notes[name] = np.stack([a[layer, head, :n] for layer, head in members]).astype(np.float32)
            if g in plan.keep:
                s.notes = {name: s.noted(name, plan.keep[g], len(members)) for name in s.notes}

    def _rewritten(self, a: Array, rows: Ints, new: Ints, values: Array) -> Array:
        """a (len(rows), dim), which this changes, with new values of the rows `new`, which are in `rows`."""
        at = np.searchsorted(rows, new)
        if not np.array_equal(rows[np.minimum(at, len(rows) - 1)], new):
            raise ValueError("a plan rewrites rows that it does not keep")
        a[self.ops.array(at)] = self.ops.to(self.ops.array(values), self.ops.name)
        return a

    def _append(self, kv: SeqKV, g: int, s: Sealed, rows: Ints, new: Rewrite | None, moves: bool, said: Said,
                told: Ints) -> None:  # fmt: skip
        """Pack the open rows `rows`, `told` in `said`, behind the sealed ones; new: other values for some."""
        n = len(rows)
        if not n:
            return
        spare = self._spare(s)  # free rows of the last sealed page that can be filled up
        more = self.sealed_arena.alloc(-(-max(0, n - spare) // PAGE))
        first = len(s.blocks) - (1 if spare else 0)
        blocks = np.concatenate([s.blocks, more])
        held = s.n
        fill = np.concatenate([s.fill, _ints(len(more))])
        left = n + int(fill[first:].sum())
        for i in range(first, len(blocks)):
            fill[i] = min(PAGE, left)
            left -= int(fill[i])
        old_pos = kv.open_pos[rows]
        pos = np.arange(held, held + n, dtype=np.int32) if moves else old_pos
        pages = -(-kv.n_open // PAGE)
        touched = blocks[first:]
        for i, (layer, head) in enumerate(self.sealed_layout.groups[g]):
            k, v = (self._take(a, rows) for a in self.read_open(kv, layer, head, pages))
            if new:
                k = self._rewritten(k, rows, new.rows, new.k[:, i])
                v = self._rewritten(v, rows, new.rows, new.v[:, i])
            if moves:
                k = self.ops.to(self._rerotate(k, pos - old_pos, layer), self.ops.name)
            if spare:
                k0, v0 = self._unpack(s.blocks[first:], g, i)
                used = PAGE - spare
                k = self.ops.xp.concat([k0[0, :used], k])
                v = self.ops.xp.concat([v0[0, :used], v])
            self._write(touched, g, i, k, v, fill[first:], said, told)
        new_pos = _ints(len(blocks) * PAGE)
        new_pos[: len(s.pos)] = s.pos
        slots = np.flatnonzero(np.arange(PAGE)[None] < fill[:, None])
        new_pos[slots[held:]] = pos
        s.blocks, s.fill, s.pos = blocks, fill, new_pos
        s.addr = self.sealed_arena.address(blocks)

    def _spare(self, s: Sealed) -> int:
        """Rows that fit into the last page; copies that page when it is shared. A format that packs rows
        together never reopens a page."""
        if not len(s.blocks) or s.fill[-1] == PAGE or self.fmt.group > 1:
            return 0
        if self.sealed_arena.shared(int(s.blocks[-1])):
            s.blocks[-1] = self.sealed_arena.copy(int(s.blocks[-1]))
        return PAGE - int(s.fill[-1])

    def view(
        self, kv: SeqKV, n_prompt: int, seed: int = 0, ids: Sequence[int] = (), run: Runs = nobody
    ) -> KVView:  # fmt: skip
        """What a policy sees: every stored row, sealed ones first, read on demand."""
        return KVView(self, kv, n_prompt, seed, ids, run)

    def apply(self, kv: SeqKV, plan: KVPlan, moves: bool) -> None:
        """Do what a plan over the sealed rows says, where there are no open ones."""
        self._note(kv, plan)
        self._drop(kv, plan, moves, UNSAID)

    def _drop(self, kv: SeqKV, plan: KVPlan, moves: bool, said: Said) -> None:
        """Keep only the planned sealed rows, some with new values; with `moves`, re-rotate them to contiguous
        positions from 0. Always writes to new blocks, so shared pages stay as they were."""
        for g in sorted({*plan.keep, *plan.values}):
            s = kv.sealed[g]
            keep = plan.keep.get(g, np.arange(s.n, dtype=np.int32))
            changed = plan.values.get(g)
            members = self.sealed_layout.groups[g]
            old_slots = s.slots()
            if len(keep) and (keep[0] < 0 or keep[-1] >= len(old_slots)):
                raise ValueError(f"plan keeps rows {keep[0]}..{keep[-1]} of {len(old_slots)}")
            slots = old_slots[keep]
            n = len(keep)
            if n == len(old_slots) and not moves and not changed:
                continue
            pages = -(-n // PAGE)
            new = self.sealed_arena.alloc(pages)
            fill = np.full(pages, PAGE, np.int32)
            if n % PAGE:
                fill[-1] = n % PAGE
            old_pos = s.pos[slots]
            new_pos = np.arange(n, dtype=np.int32) if moves else old_pos
            used = np.unique(slots // PAGE)  # pages that hold kept rows
            at = np.searchsorted(used, slots // PAGE) * PAGE + slots % PAGE
            for i, (layer, _) in enumerate(members if n else ()):
                if self.fmt.group <= 1 and not changed and not (moves and (new_pos != old_pos).any()):
                    self._move_raw(s.blocks[used], at, new, g, i)
                    k, v = self._unpack(new, g, i)
                    self._index(new, g, i, k, fill)
                else:
                    k, v = self._unpack(s.blocks[used], g, i)
                    k = self._take(k, at)
                    v = self._take(v, at)
                    if changed:
                        k = self._rewritten(k, keep, changed.rows, changed.k[:, i])
                        v = self._rewritten(v, keep, changed.rows, changed.v[:, i])
                    if moves:
                        k = self._rerotate(k, new_pos - old_pos, layer)
                    self._write(new, g, i, k, v, fill, said, keep)
            self.sealed_arena.drop(s.blocks)
            kv.rewritten += 1
            kv.dropped = kv.dropped or n < len(old_slots) or changed is not None
            s.blocks, s.fill = new, fill
            s.pos = np.zeros(pages * PAGE, np.int32)
            s.pos[:n] = new_pos
            s.addr = self.sealed_arena.address(new)
        if moves:
            kv.next_pos = kv.n_sealed + kv.n_open
        self._point(kv)

    def _take(self, pages: Array, at: NDArray[np.int64] | Ints) -> Array:
        flat = pages.reshape((-1, pages.shape[-1]))
        return flat[self.ops.array(np.asarray(at, np.int64))]

    def _rerotate(self, k: Array, delta: Ints, layer: int) -> Array:
        """Keys (n, dim) turned on by `delta` positions: R(p + delta) = R(delta) R(p), at least in
        float32."""
        rope = self.ropes[layer]
        if rope is None:
            return k
        wide = "float64" if self.ops.name == "float64" else "float32"
        angle = delta[:, None].astype(np.float64) * rope.inv_freq(0).astype(np.float64)
        cos = self.ops.to(self.ops.array(np.cos(angle)), wide)
        sin = self.ops.to(self.ops.array(np.sin(angle)), wide)
        return rotate(self.ops, self.ops.to(k, wide)[:, None], cos, sin)[:, 0]

    # ------------------------------------------------------------------ pages

    def read_open(self, kv: SeqKV, layer: int, head: int, pages: int) -> tuple[Array, Array]:
        """k, v (pages * PAGE, dim) of the open zone, in the compute dtype."""
        at = self.open_layout
        i = layer * self.n_kv + head
        out = []
        for f, spec in enumerate(at.fields):
            a = self.open_arena.read(kv.open[:pages], at.where(0, i, f), spec.dtype, spec.shape)
            a = self.ops.cast(a)
            a = self.ops.xp.permute_dims(a, (0, 2, 1)) if spec.rows == 1 else a
            out.append(a.reshape((-1, self.head_dim)))
        return out[0], out[1]

    def keys(self, kv: SeqKV, layer: int, head: int) -> tuple[Array, Ints, Array]:
        """Every stored row of a head: k (n, dim) in the compute dtype, positions (n,), and what is added to
        scores (n,), empty for nothing."""
        g, member = self.group_of[layer, head]
        s, slots = kv.sealed[g], kv.sealed[g].slots()
        k = self._take(self._unpack(s.blocks, g, member)[0], slots)
        fresh = self.read_open(kv, layer, head, -(-kv.n_open // PAGE))[0][: kv.n_open]
        bias = np.zeros(len(slots) + kv.n_open if len(s.bias) else 0, np.float32)
        if len(s.bias):
            bias[: len(slots)] = s.bias[member, slots]
        pos = np.concatenate([s.pos[slots], kv.open_pos[: kv.n_open]])
        return self.ops.xp.concat([k, fresh]), pos, self.ops.cast(self.ops.array(bias))

    def read_fields(self, blocks: Ints, g: int, i: int, own: bool) -> dict[str, Array]:
        """The format's own fields, or the index fields, of member i of group g: (n_pages, *shape)."""
        at = self.sealed_layout
        which = at.own(i) if own else at.index_fields
        return {
            at.fields[f].name: self.sealed_arena.read(
                blocks, at.where(g, i, f), at.fields[f].dtype, at.fields[f].shape
            )
            for f in which
        }

    def _unpack(self, blocks: Ints, g: int, i: int) -> tuple[Array, Array]:
        """k, v (n_pages, PAGE, dim) in the compute dtype."""
        fields = self.read_fields(blocks, g, i, own=True)
        if self.packed:
            told = self.fmt.part if isinstance(self.fmt, Merging) and i in self.under else self.fmt.unpack
            k, v = told(fields, self.head_dim, self.ops)
            return self.ops.cast(k), self.ops.cast(v)
        k = self.ops.xp.permute_dims(self.ops.cast(fields["k"]), (0, 2, 1))
        return k, self.ops.cast(fields["v"])

    def sealed_rows(self, kv: SeqKV, layer: int, head: int) -> tuple[Array, Array]:
        """k, v (n_pages, PAGE, dim) of the sealed zone of one head, in the compute dtype."""
        g, i = self.group_of[layer, head]
        return self._unpack(kv.sealed[g].blocks, g, i)

    def _write(
        self, blocks: Ints, g: int, i: int, k: Array, v: Array, fill: Ints, said: Said, told: Ints
    ) -> None:  # fmt: skip
        """Rows k, v (n, dim), `told` in `said`, laid out by `fill`, into member i of the blocks; indexed."""
        xp = self.ops.xp
        n = len(blocks)
        # a page that is not full has its last row again, so that ranges of what is packed together stay
        at_row = (np.cumsum(fill) - fill)[:, None] + np.minimum(np.arange(PAGE), fill[:, None] - 1)
        pk, pv = (self._take(a, at_row.reshape(-1)).reshape((n, PAGE, self.head_dim)) for a in (k, v))
        at = self.sealed_layout
        low = self.under.get(i, i)
        if isinstance(self.fmt, Merging) and low < i:
            values = self.fmt.join(self.read_fields(blocks, g, low, own=True), pk, pv, self.ops)
        elif said.rows.size and isinstance(self.fmt, Asking):
            rows, channels = (a[at.groups[g][i]] for a in said)
            rows = np.where(np.arange(PAGE) < fill[:, None], rows[told][at_row], 0)
            values = self.fmt.pack_by(pk, pv, self.ops.array(rows), self.ops.array(channels), self.ops)
        elif self.packed:
            values = self.fmt.pack(pk, pv, self.ops)
        else:
            values = {"k": self._contiguous(xp.permute_dims(pk, (0, 2, 1))), "v": pv}
        for f in at.own(i):
            spec = at.fields[f]
            self._put(blocks, g, i, f, self.ops.to(values[spec.name], spec.dtype))
        if not self.selector.dense:
            # the index is built from what attention will read, not from what was packed
            for m in {low, i}:  # what lies below has changed too
                self._index(blocks, g, m, self._unpack(blocks, g, m)[0], fill)

    def _index(self, blocks: Ints, g: int, i: int, k: Array, fill: Ints) -> None:
        at = self.sealed_layout
        if self.selector.dense:
            return
        valid = self.ops.array(np.arange(PAGE)[None] < fill[:, None])
        index = self.selector.of(self.tables, *at.groups[g][i]).index(k, valid, self.ops)
        for f in at.index_fields:
            spec = at.fields[f]
            self._put(blocks, g, i, f, self.ops.to(index[spec.name], spec.dtype))

    def _put(self, blocks: Ints, g: int, i: int, f: int, values: Array) -> None:
        at = self.sealed_layout
        flat = self._contiguous(values.reshape((len(blocks), -1)))
        self.sealed_arena.write(blocks, at.where(g, i, f), at.fields[f].dtype, flat)

    def _contiguous(self, a: Array) -> Array:
        return np.ascontiguousarray(a) if isinstance(a, np.ndarray) else a.contiguous()

    def _move_raw(self, source: Ints, at: Array, target: Ints, g: int, i: int) -> None:
        """Copy rows as they are packed: row `at` (page of `source` * PAGE + row) to the next of target."""
        lay = self.sealed_layout
        n = len(at)
        for f in range(self.n_own):
            spec = lay.fields[f]
            a = self.sealed_arena.read(source, lay.where(g, i, f), spec.dtype, spec.shape)
            rows = self.ops.xp.moveaxis(a, spec.rows + 1, 1)  # (n_pages, PAGE, ...)
            rest = tuple(rows.shape[2:])
            rows = rows.reshape((-1, *rest))[self.ops.array(np.asarray(at, np.int64))]
            out = self.ops.xp.zeros((len(target) * PAGE, *rest), dtype=rows.dtype, device=rows.device)
            out[:n] = rows
            out = self.ops.xp.moveaxis(out.reshape((len(target), PAGE, *rest)), 1, spec.rows + 1)
            self._put(target, g, i, f, self._contiguous(out))

    def _point(self, kv: SeqKV) -> None:
        """Refresh the pointers that the native runner follows."""
        for g, s in enumerate(kv.sealed):
            self._place_bias(s, len(self.sealed_layout.groups[g]))
            kv.bias[g] = s.bias.ctypes.data if len(s.bias) else 0
            kv.table[g] = (s.addr.ctypes.data, s.fill.ctypes.data, s.pos.ctypes.data, len(s.blocks))

    def _place_bias(self, s: Sealed, members: int) -> None:
        """The note that attention reads, by slot. Forks keep one array while their rows are alike."""
        if not len(s.notes.get(BIAS, ())):
            s.bias = np.zeros((0, 0), np.float32)
            return
        by_slot = np.zeros((members, len(s.blocks) * PAGE), np.float32)
        by_slot[:, s.slots()] = s.noted(BIAS, np.arange(s.n, dtype=np.int32), members)
        if not np.array_equal(by_slot, s.bias):
            s.bias = by_slot

    # ------------------------------------------------------------------ accounting

    @property
    def held(self) -> int:
        """Bytes of pages in use, shared ones once."""
        return self.open_arena.held + self.sealed_arena.held

    @property
    def reserved(self) -> int:
        """Bytes that the arenas have taken from the system."""
        return self.open_arena.reserved + self.sealed_arena.reserved

    def held_by(self, kvs: Sequence[SeqKV]) -> int:
        """Bytes of the pages that these sequences refer to, shared ones once."""
        marks = np.zeros(len(self.open_arena.refs), bool), np.zeros(len(self.sealed_arena.refs), bool)
        for kv in kvs:
            marks[0][kv.open] = True
            for s in kv.sealed:
                marks[1][s.blocks] = True
        pages = [int(np.count_nonzero(m)) for m in marks]
        return pages[0] * self.open_layout.block + pages[1] * self.sealed_layout.block

    def bytes_of(self, kv: SeqKV) -> int:
        """Bytes of pages, positions, notes and tables that one sequence refers to."""
        pages = len(kv.open) * self.open_layout.block
        pages += sum(len(s.blocks) for s in kv.sealed) * self.sealed_layout.block
        meta = kv.open_pos.nbytes + kv.open.nbytes + kv.open_addr.nbytes + kv.table.nbytes
        meta += kv.bias.nbytes + sum(getattr(a, "nbytes", 0) for a in kv.kept.values())
        meta += sum(
            s.blocks.nbytes + s.fill.nbytes + s.pos.nbytes + s.addr.nbytes + s.bias.nbytes
            + sum(a.nbytes for a in s.notes.values())
            for s in kv.sealed
        )  # fmt: skip
        return int(pages + meta)

    @property
    def row_bytes(self) -> float:
        """Bytes of one row of all layers and heads in the zone where it takes more."""
        sealed = self.sealed_layout.block * len(self.sealed_layout.groups)
        return max(self.open_layout.block, sealed) / PAGE

    def full_bytes(self, n: int) -> int:
        """Bytes that n rows take in the open zone: what the plain path would hold."""
        return math.ceil(n / PAGE) * self.open_layout.block
