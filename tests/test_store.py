"""Random use of the store against lists of rows: nothing is lost, nothing leaks into a fork, and every
block is counted.

The oracle keeps (key, value, position) of every row of every head. Exact formats must give it back as it
was; packed ones as they pack one row alone. Keys that moved are compared after a turn worked out with
complex numbers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pronghorn.kv.layout import PAGE
from pronghorn.kv.store import SeqKV, Store
from pronghorn.methods.kvfmt.int8 import Int8
from pronghorn.methods.select.quest import Quest
from pronghorn.model.rope import Rope
from pronghorn.nulls import Dense, ExactKV
from pronghorn.ops.ref import Ops
from pronghorn.types import Field, Guarantee, KVPlan, Traits
from tests.test_stateful import check_arena

LAYERS, HEADS, DIM = 2, 2, 8
PAIRS = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
ROPE = Rope(DIM, 100.0)


@dataclass(frozen=True)
class Together:
    """A format for tests that packs the rows of a page together: values less the page's mean of each
    channel, which is kept beside them. A page is never opened again."""

    traits = Traits(Guarantee.EXACT)
    open = "own"
    group = PAGE
    codes = ()

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return (
            Field("k", "float64", (dim, page), rows=1), Field("v", "float64", (page, dim)),
            Field("mean", "float64", (dim,), rows=-1),
        )  # fmt: skip

    def pack(self, k: Any, v: Any, ops: Any) -> dict[str, Any]:
        mean = k.mean(axis=1)
        return {"k": (k - mean[:, None]).swapaxes(1, 2), "v": v, "mean": mean}

    def unpack(self, fields: dict[str, Any], dim: int, ops: Any) -> tuple[Any, Any]:
        return fields["k"].swapaxes(1, 2) + fields["mean"][:, None], fields["v"]


@dataclass(frozen=True)
class Row:
    k: NDArray[Any]
    v: NDArray[Any]
    pos: int


@dataclass
class Oracle:
    """Rows of each head: sealed ones, which may differ from head to head, then open ones."""

    sealed: dict[tuple[int, int], list[Row]]
    open: dict[tuple[int, int], list[Row]]
    ends: list[int]  # where sealed pages end, while nothing was dropped
    length: int = 0
    next_pos: int = 0
    dropped: bool = False

    def copy(self) -> Oracle:
        return Oracle(
            {p: list(rows) for p, rows in self.sealed.items()},
            {p: list(rows) for p, rows in self.open.items()},
            list(self.ends), self.length, self.next_pos, self.dropped,
        )  # fmt: skip


def turned(k: NDArray[Any], delta: int) -> NDArray[Any]:
    """A key `delta` positions on: pairs (i, i + dim / 2) as complex numbers."""
    half = DIM // 2
    z = (k[:half] + 1j * k[half:]) * np.exp(1j * delta * ROPE.inv_freq(0).astype(np.float64))
    return np.concatenate([z.real, z.imag])


class World:
    """A store with its sequences, and what they should hold."""

    def __init__(self, seed: int, fmt: Any, selector: Any, rows: str) -> None:
        self.r, self.noise = random.Random(seed), np.random.default_rng(seed)
        self.ops = Ops("float64")
        self.store = Store(self.ops, LAYERS, HEADS, DIM, "float64", fmt, selector, rows, [ROPE] * LAYERS)
        self.held: list[tuple[SeqKV, Oracle]] = []
        self.did: set[str] = set()

    def packed(self, row: Row) -> Row:
        """What a row is once sealed, worked out alone."""
        fmt = self.store.fmt
        if fmt.group != 1:
            return row
        k, v = np.zeros((1, PAGE, DIM)), np.zeros((1, PAGE, DIM))
        k[0, 0], v[0, 0] = row.k, row.v
        k, v = fmt.unpack(fmt.pack(k, v, self.ops), k.shape[-1], self.ops)
        return Row(k[0, 0], v[0, 0], row.pos)

    # -------------------------------------------------------------- what can happen

    def new(self, *_: Any) -> None:
        empty = {p: [] for p in PAIRS}
        self.held.append((self.store.new(), Oracle(dict(empty), {p: [] for p in PAIRS}, [0])))

    def grow(self, kv: SeqKV, o: Oracle) -> None:
        n = self.r.choice([1, 1, 2, 15, 16, 17, self.r.randint(1, 50)])
        addr, block, slot = self.store.reserve(kv, n)
        assert (addr == self.store.open_arena.address(block)).all()
        self.store.extend(kv, range(kv.next_pos, kv.next_pos + n))
        lay, arena = self.store.open_layout, self.store.open_arena
        for i in range(n):
            one = block[i : i + 1]
            for m, pair in enumerate(PAIRS):
                k, v = self.noise.standard_normal((2, DIM))
                for f, (value, at) in enumerate(((k, np.s_[:, slot[i]]), (v, np.s_[slot[i]]))):
                    spec = lay.fields[f]
                    page = arena.read(one, lay.where(0, m, f), spec.dtype, spec.shape)
                    page[0][at] = value
                    arena.write(one, lay.where(0, m, f), spec.dtype, page)
                o.open[pair].append(Row(k, v, o.next_pos + i))
        o.length += n
        o.next_pos += n

    def fork(self, kv: SeqKV, o: Oracle) -> None:
        self.held.append((self.store.fork(kv), o.copy()))

    def cut(self, kv: SeqKV, o: Oracle) -> None:
        sealed = len(o.sealed[0, 0])
        n = self.r.choice([*o.ends, self.r.randint(0, o.length)])
        if o.dropped or (n < sealed and n not in o.ends):
            with pytest.raises(ValueError, match="cannot cut"):
                self.store.cut(kv, n)
            return
        self.store.cut(kv, n)
        for p in PAIRS:
            o.sealed[p], o.open[p] = o.sealed[p][:n], o.open[p][: max(0, n - sealed)]
        o.ends = [e for e in o.ends if e <= n]
        o.length = o.next_pos = n

    def seal(self, kv: SeqKV, o: Oracle) -> None:
        self.store.seal(kv)
        before = len(o.sealed[0, 0])
        for p in PAIRS:
            o.sealed[p] += [self.packed(row) for row in o.open[p]]
            o.open[p] = []
        after = len(o.sealed[0, 0])
        if self.store.fmt.group > 1:
            o.ends += list(range(before + PAGE, after, PAGE)) + ([after] if after > before else [])
        else:
            o.ends = [*range(0, after, PAGE), after]

    def apply(self, kv: SeqKV, o: Oracle, moves: bool = False) -> None:
        self.seal(kv, o)
        keep: dict[int, NDArray[np.int32]] = {}
        sizes = [s.n for s in kv.sealed]
        chance, same = self.r.choice([0.0, 0.1, 0.5, 0.97, 1.0]), self.r.randint(0, max(sizes))
        for g, members in enumerate(self.store.sealed_layout.groups):
            if self.r.random() < 0.2 and not moves:
                continue
            n = sizes[g]
            rows = sorted(self.r.sample(range(n), min(n, same)))
            if not moves:
                rows = [i for i in range(n) if self.r.random() < chance]
            keep[g] = np.array(rows, np.int32)
            for p in members:
                kept = [o.sealed[p][i] for i in rows]
                o.dropped = o.dropped or len(rows) < n
                if moves:
                    kept = [
                        self.packed(Row(turned(row.k, i - row.pos), row.v, i)) if i != row.pos else row
                        for i, row in enumerate(kept)
                    ]
                o.sealed[p] = kept
        self.store.apply(kv, KVPlan(keep), moves)
        if moves:
            o.next_pos = max(len(rows) for rows in o.sealed.values())

    def move(self, kv: SeqKV, o: Oracle) -> None:
        if len({len(rows) for rows in o.sealed.values()}) == 1:  # as positions need
            self.apply(kv, o, moves=True)

    def free(self, kv: SeqKV, o: Oracle) -> None:
        self.held = [h for h in self.held if h[0] is not kv]
        self.store.free(kv)

    # -------------------------------------------------------------- what must hold

    def check(self) -> None:
        for kv, o in self.held:
            assert (kv.length, kv.next_pos, kv.dropped) == (o.length, o.next_pos, o.dropped)
            assert kv.n_open == len(o.open[0, 0])
            for layer, head in PAIRS:
                g, i = self.store.group_of[layer, head]
                s = kv.sealed[g]
                slots = s.slots()
                k, v = (a.reshape(-1, DIM)[slots] for a in self.store.sealed_rows(kv, layer, head))
                self.same(o.sealed[layer, head], k, v, s.pos[slots])
                k, v = (a[: kv.n_open] for a in self.store.read_open(kv, layer, head, len(kv.open)))
                self.same(o.open[layer, head], k, v, kv.open_pos[: kv.n_open])
                if not self.store.selector.dense and len(s.blocks):
                    self.bounds(kv, g, i, layer, head)
        check_arena(self.store.open_arena, [kv.open for kv, _ in self.held])
        tables = [np.concatenate([s.blocks for s in kv.sealed]) for kv, _ in self.held]
        check_arena(self.store.sealed_arena, tables)
        blocks = len({b for kv, _ in self.held for b in kv.open.tolist()})
        sealed = len({b for t in tables for b in t.tolist()})
        size = blocks * self.store.open_layout.block + sealed * self.store.sealed_layout.block
        assert self.store.held == size <= self.store.reserved

    def same(self, want: list[Row], k: Any, v: Any, pos: Any) -> None:
        assert pos.tolist() == [row.pos for row in want]
        if want:
            # a turned key may round to the next step of an eight-bit code
            scale = np.abs(k).max(axis=1, keepdims=True) / 60 if self.store.fmt.group == 1 else 0
            moved = 1e-9 + scale * ("move" in self.did)
            assert (np.abs(k - np.stack([row.k for row in want])) <= moved).all()
            assert (np.abs(v - np.stack([row.v for row in want])) <= 1e-12).all()

    def bounds(self, kv: SeqKV, g: int, i: int, layer: int, head: int) -> None:
        s = kv.sealed[g]
        index = self.store.read_fields(s.blocks, g, i, own=False)
        pages = self.store.sealed_rows(kv, layer, head)[0]
        lows, highs = (self.store.ops.cast(index[name])[:, 0] for name in ("lo", "hi"))
        for page, n, lo, hi in zip(pages, s.fill, lows, highs, strict=True):  # bfloat16, rounded outwards
            low, high = page[:n].min(axis=0), page[:n].max(axis=0)
            assert ((lo <= low) & (lo >= low - np.abs(low) / 60 - 1e-30)).all()
            assert ((hi >= high) & (hi <= high + np.abs(high) / 60 + 1e-30)).all()

    def run(self, steps: int) -> None:
        verbs = [self.new, self.grow, self.grow, self.grow, self.fork, self.cut, self.seal, self.apply]
        verbs += [self.free, self.move]
        for _ in range(steps):
            if not self.held or len(self.held) > 7:
                verb = self.new if not self.held else self.free
            else:
                verb = self.r.choice(verbs)
            self.did.add(verb.__name__)
            verb(*(self.r.choice(self.held) if self.held else ()))
            self.check()
        for kv, _ in self.held:
            self.store.free(kv)
        assert self.store.held == self.store.reserved == 0


@pytest.mark.parametrize("selector", [Dense(), Quest()], ids=["dense", "quest"])
@pytest.mark.parametrize("fmt", [ExactKV(), Int8(), Together()], ids=["exact", "int8", "together"])
@pytest.mark.parametrize("rows", ["seq", "layer", "head"])
def test_a_store_is_lists_of_rows(fmt: Any, selector: Any, rows: str):
    for seed in range(2):
        world = World(seed, fmt, selector, rows)
        world.run(110)
        assert {"grow", "fork", "cut", "seal", "apply", "move", "free"} <= world.did


def test_a_plan_beyond_the_rows_is_refused():
    world = World(0, ExactKV(), Dense(), "seq")
    world.new()
    kv, o = world.held[0]
    world.grow(kv, o)
    world.store.seal(kv)
    with pytest.raises(ValueError, match="plan keeps"):
        world.store.apply(kv, KVPlan({0: np.array([0, 999], np.int32)}), False)
