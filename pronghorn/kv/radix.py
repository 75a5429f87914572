"""A radix tree of stored states: which text shares its beginning with which.

A branch holds a run of tokens and a state (a `SeqKV`) that ends where the run ends. States are forks, so a
branch costs the pages that its parent does not hold. Where a stored text and a new one part, the run is cut
in two and the upper half gets a fork of the lower one's state, cut there.

Of its open rows a state gives any number, of its sealed ones multiples of the grid. Where a run is cut inside
rows that are sealed, the upper half's state ends at the last multiple before: its branch is *short*, and it
is there for the sake of what lies below. A short branch never stays without one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pronghorn.kv.arena import Arena
from pronghorn.kv.layout import PAGE
from pronghorn.types import Ints

if TYPE_CHECKING:
    from pronghorn.kv.store import SeqKV, Store


def usable_rows(n: int, n_sealed: int, grid: int) -> int:
    """Of `n` rows that a state and a text have in common, those that the text can take."""
    return n if n >= n_sealed else n // grid * grid


def usable(kv: SeqKV, n: int, grid: int) -> int:
    """Rows that a text can take which has its first `n` tokens in common with the state."""
    return usable_rows(min(n, kv.length), kv.n_sealed, grid)


def common(a: Ints, b: Ints) -> int:
    """Tokens that two texts begin with alike."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


class Branch:
    """A run of tokens below `parent`, and the state that ends with it (earlier where it is short)."""

    def __init__(self, number: int, parent: Branch | None, run: Ints, kv: SeqKV) -> None:
        self.id, self.parent, self.run, self.kv = number, parent, run, kv
        self.start: int = parent.end if parent else 0
        self.below: dict[int, Branch] = {}  # by the first token of their runs
        self.hits = 0
        self.credit = 0.0  # of whoever decides what leaves
        self.used = time.monotonic()
        self.best: Branch = self  # of this branch and those below, not short: with the fewest sealed rows

    @property
    def end(self) -> int:
        return self.start + len(self.run)

    @property
    def short(self) -> bool:
        return self.kv.length < self.end

    def path(self) -> list[Branch]:
        """This branch and those above, nearest first, the root left out."""
        out, at = [], self
        while at.parent is not None:
            out.append(at)
            at = at.parent
        return out

    def ids(self) -> Ints:
        """The whole text up to its end."""
        return np.concatenate([b.run for b in reversed(self.path())])


class Radix:
    """States of one store, all offered with the same `grid`. They are the tree's own: it frees them."""

    def __init__(self, store: Store, grid: int) -> None:
        self.store, self.grid = store, grid
        self.root = Branch(0, None, np.zeros(0, np.int32), store.new())
        self._made = 0
        self._n = 0
        self._open, self._sealed = _Counts(store.open_arena), _Counts(store.sealed_arena)

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[Branch]:
        """Every branch, parents before those below them."""
        todo = list(self.root.below.values())
        while todo:
            at = todo.pop()
            yield at
            todo += at.below.values()

    # ------------------------------------------------------------------ finding

    def find(self, ids: Ints) -> tuple[Branch, int]:
        """The branch whose state gives a text `ids` most rows, and how many; the root and 0 without any.
        Takes time in the length of the text."""
        at, n, _ = self._walk(ids)
        best, rows = self.root, 0
        if n > at.start:
            best = at.best
            rows = usable(best.kv, n, self.grid)
        for above in at.path()[1:]:
            if not above.short:  # gives all its rows
                return (above, above.end) if above.end > rows else (best, rows)
        return (best, rows) if rows else (self.root, 0)

    def _walk(self, ids: Ints) -> tuple[Branch, int, bool]:
        """The last branch that the text enters, the tokens it has in common with the tree, and whether the
        branch ends there."""
        at, n = self.root, 0
        while n < len(ids):
            below = at.below.get(int(ids[n]))
            if below is None:
                break
            at = below
            n += common(at.run, ids[n:])
            if n < at.end:
                break
        return at, n, n == at.end

    # ------------------------------------------------------------------ changing

    def put(self, ids: Ints, kv: SeqKV) -> Branch:
        """Take over the state of a text `ids`, `kv.length` tokens long and not empty; returns the branch that
        ends there."""
        at, n, ends = self._walk(ids)
        if not ends:
            at = self._split(at, n, kv)
        for passed in at.path():
            if passed.short and usable(kv, passed.end, self.grid) > passed.kv.length:
                self._replace(passed, self._fork(kv, passed.end))
                self._best(passed)
        if n < len(ids):
            if at is not self.root:
                self.store.share(kv, at.kv, at.kv.length, self.grid)
            new = self._branch(at, ids[n:], kv)
        else:
            new = at
            if kv.n_sealed < at.kv.n_sealed and not at.short:
                self._replace(at, kv)
            elif at.kv is not kv:
                kv.free()
        self._best(new)
        if new.parent is not None:
            self._lean(new.parent, new)
        return new

    def drop(self, leaf: Branch) -> None:
        """Free the state of a branch that has none below it."""
        above = leaf.parent
        if above is None or leaf.below:
            raise ValueError("only a branch without any below it can leave")
        del above.below[int(leaf.run[0])]
        self._n -= 1
        self._let(leaf.kv)
        if above.below and above is not self.root:
            self._lean(above, next(iter(above.below.values())))
        elif above.short and above.kv.length > above.start:
            above.run = above.run[: above.kv.length - above.start].copy()
        elif above.short:
            return self.drop(above)
        self._best(above)
        return None

    def clear(self) -> None:
        for b in reversed(list(self)):
            if not b.below and b.parent is not None and b.parent.below.get(int(b.run[0])) is b:
                self.drop(b)

    def _branch(self, parent: Branch, run: Ints, kv: SeqKV) -> Branch:
        self._made += 1
        self._n += 1
        new = Branch(self._made, parent, run.copy(), kv)
        parent.below[int(run[0])] = new
        self._hold(kv)
        return new

    def _split(self, lower: Branch, n: int, other: SeqKV) -> Branch:
        """Cut a branch at `n`; returns the new upper half. other: a state of a text that parts there."""
        above, grid = lower.parent, self.grid
        assert above is not None
        source = max(lower.kv, other, key=lambda kv: usable(kv, n, grid))
        upper = self._branch(above, lower.run[: n - lower.start], self._fork(source, n))
        upper.hits, upper.credit, upper.used = lower.hits, lower.credit, lower.used
        lower.parent, lower.start, lower.run = upper, n, lower.run[n - lower.start :].copy()
        upper.below[int(lower.run[0])] = lower
        upper.best = lower.best
        return upper

    def _fork(self, kv: SeqKV, n: int) -> SeqKV:
        new = self.store.fork(kv)
        self.store.cut(new, usable(kv, n, self.grid))
        return new

    def _replace(self, b: Branch, kv: SeqKV) -> None:
        self._hold(kv)
        self._let(b.kv)
        b.kv = kv

    def _lean(self, upper: Branch, lower: Branch) -> None:
        """Let a branch refer to the pages of one below it: its last page, half filled, is there too."""
        if upper is not self.root:
            self._count(upper.kv, -1)
            self.store.share(upper.kv, lower.kv, upper.kv.length, self.grid)
            self._count(upper.kv, 1)

    def _best(self, b: Branch) -> None:
        """Work out the best state of a branch again, and what follows for those above it."""
        at: Branch | None = b
        while at is not None and at.parent is not None:
            every = [below.best for below in at.below.values()]
            best = min(every if at.short else [at, *every], key=lambda x: x.kv.n_sealed)
            if best is at.best and at is not b:
                return
            at.best, at = best, at.parent

    # ------------------------------------------------------------------ what it costs

    def _hold(self, kv: SeqKV) -> None:
        self._count(kv, 1)

    def _let(self, kv: SeqKV) -> None:
        self._count(kv, -1)
        kv.free()

    def _count(self, kv: SeqKV, by: int) -> None:
        self._open.add(kv.open, by)
        for s in kv.sealed:
            self._sealed.add(s.blocks, by)

    @property
    def held(self) -> int:
        """Bytes of pages that nobody but the tree holds."""
        return self._open.alone + self._sealed.alone

    def frees(self, b: Branch) -> int:
        """Bytes that come back when the branch's state is freed: of pages that nobody else holds."""
        arena = self.store.open_arena
        n = int((arena.refs[b.kv.open] == 1).sum()) * arena.block
        arena = self.store.sealed_arena
        return n + sum(int((arena.refs[s.blocks] == 1).sum()) for s in b.kv.sealed) * arena.block

    def could_free(self, b: Branch) -> int:
        """Bytes of its pages that nobody outside the tree holds: what comes back when all branches on them
        have left."""
        return self._open.of(b.kv.open) + sum(self._sealed.of(s.blocks) for s in b.kv.sealed)

    def own(self, b: Branch) -> int:
        """Bytes of pages that its parent does not hold."""
        assert b.parent is not None
        up, kv = b.parent.kv, b.kv
        n = int((~np.isin(kv.open, up.open)).sum()) * self.store.open_layout.block
        more = sum(
            int((~np.isin(a.blocks, c.blocks)).sum()) for a, c in zip(kv.sealed, up.sealed, strict=True)
        )
        return n + more * self.store.sealed_layout.block

    def users(self, b: Branch) -> int:
        """Holders outside the tree of the last page that is full of the branch's own rows; 0 without any."""
        kv, full = b.kv, b.kv.n_open // PAGE
        if full and kv.n_sealed + full * PAGE > b.start:
            return self._open.others(int(kv.open[full - 1]))
        blocks = kv.sealed[0].blocks
        if len(blocks) and kv.n_sealed > b.start:
            return self._sealed.others(int(blocks[-1]))
        return 0


class _Counts:
    """How often the tree refers to each block of an arena."""

    def __init__(self, arena: Arena) -> None:
        self._arena, self._mine = arena, np.zeros(0, np.int32)

    def add(self, blocks: Ints, by: int) -> None:
        if len(self._mine) < len(self._arena.refs):
            self._mine = np.append(self._mine, np.zeros(len(self._arena.refs) - len(self._mine), np.int32))
        self._mine[blocks] += by

    @property
    def alone(self) -> int:
        mine: NDArray[np.int32] = self._mine
        refs = self._arena.refs[: len(mine)]
        return int(((mine > 0) & (mine == refs)).sum()) * self._arena.block

    def of(self, blocks: Ints) -> int:
        """Bytes of those that the tree alone refers to."""
        return int((self._arena.refs[blocks] == self._mine[blocks]).sum()) * self._arena.block

    def others(self, block: int) -> int:
        return int(self._arena.refs[block] - self._mine[block])
