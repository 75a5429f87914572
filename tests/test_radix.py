"""The radix tree against a scan over everything that it holds, and against a list of everything that it was
given; pages are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pronghorn.kv.layout import PAGE
from pronghorn.kv.radix import Radix, common, usable, usable_rows
from pronghorn.kv.store import SeqKV
from tests.states import GRID, grow, image, make, rows_of, state
from tests.test_stateful import check_arena


def text(seed: int, n: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 50, n).tolist()


TRUNK = text(0, 120)


@st.composite
def texts(draw: Any) -> list[int]:
    """Texts that part from one another at any place."""
    cut = draw(st.sampled_from([0, 1, 15, 16, 17, 31, 32, 33, 48, 64, 65, 90, 120]))
    more = draw(st.sampled_from([0, 1, 5, 16, 20, 40, 70]))
    ids = TRUNK[:cut] + text(draw(st.integers(1, 3)), more)
    return ids or [7]


class Trees(RuleBasedStateMachine):
    @initialize(kind=st.sampled_from(["fp32", "int8", "heads"]))
    def start(self, kind: str) -> None:
        self.store = make(kind)
        self.tree = Radix(self.store, GRID)
        self.given: list[tuple[list[int], int]] = []  # texts and sealed rows since something left
        self.running: list[tuple[SeqKV, list[int], list[bytes]]] = []

    @rule(ids=texts(), seals=st.integers(0, 5), own=st.booleans())
    def put(self, ids: list[int], seals: int, own: bool) -> None:
        sealed = min(seals, len(ids) // GRID) * GRID
        want = np.array(ids, np.int32)
        branch, n = self.tree.find(want)
        if own or not n:
            kv = state(self.store, ids, sealed)
        else:  # it starts from what is stored, as a sequence of an engine does
            kv = self.store.fork(branch.kv)
            self.store.cut(kv, n)
            grow(kv, ids)
            sealed = kv.n_sealed
        kept = self.store.fork(kv)
        before = image(kv)
        new = self.tree.put(want, kv)
        assert new.ids().tolist() == ids
        assert image(new.kv) == before or new.kv.n_sealed < sealed
        if len(self.running) < 3:
            self.running.append((kept, ids, image(kept)))
        else:
            kept.free()
        self.given.append((ids, sealed))

    @rule(i=st.integers(0, 9))
    def end(self, i: int) -> None:
        if i < len(self.running):
            self.running.pop(i)[0].free()

    @rule(i=st.integers(0, 99))
    def drop(self, i: int) -> None:
        leaves = [b for b in self.tree if not b.below]
        if leaves:
            leaf = leaves[i % len(leaves)]
            held, frees = self.store.held, self.tree.frees(leaf)
            alone = leaf.parent is not None and len(leaf.parent.below) == 1 and not leaf.parent.short
            self.tree.drop(leaf)
            assert held - self.store.held >= frees
            if alone:  # else the parent leans on another one, or leaves too
                assert held - self.store.held == frees
            self.given = []

    @rule(ids=texts(), short=st.integers(0, 40))
    def find(self, ids: list[int], short: int) -> None:
        want = np.array(ids[: max(0, len(ids) - short)], np.int32)
        branch, n = self.tree.find(want)
        scan = [usable(b.kv, common(b.ids(), want), GRID) for b in self.tree]
        assert n == max(scan, default=0)
        offered = [usable_rows(common(np.array(t), want), sealed, GRID) for t, sealed in self.given]
        assert n >= max(offered, default=0)
        assert n == 0 or (branch.ids()[:n] == want[:n]).all()
        if n:
            fresh = state(self.store, ids[:n], min(branch.kv.n_sealed, n) // GRID * GRID)
            assert rows_of(branch.kv, n) == image(fresh)
            fresh.free()

    @invariant()
    def whole(self) -> None:
        if not hasattr(self, "tree"):
            return
        branches = list(self.tree)
        assert len(branches) == len(self.tree)
        kvs = [*(b.kv for b in branches), *(kv for kv, _, _ in self.running)]
        check_arena(self.store.open_arena, [kv.open for kv in kvs])
        check_arena(self.store.sealed_arena, [s.blocks for kv in kvs for s in kv.sealed])
        for b in branches:
            assert len(b.run) and all(int(c.run[0]) == t and c.parent is b for t, c in b.below.items())
            assert b.kv.length <= b.end and (b.below or not b.short)
            deep = [x for x in branches if b in x.path() and not x.short]
            assert b.best in deep and b.best.kv.n_sealed == min(x.kv.n_sealed for x in deep)
        mine = {int(i) for b in branches for i in b.kv.open}
        other = {int(i) for kv, _, _ in self.running for i in kv.open}
        sealed = {int(i) for b in branches for s in b.kv.sealed for i in s.blocks}
        sealed -= {int(i) for kv, _, _ in self.running for s in kv.sealed for i in s.blocks}
        open_bytes = len(mine - other) * self.store.open_layout.block
        assert self.tree.held == open_bytes + len(sealed) * self.store.sealed_layout.block
        for kv, _, before in self.running:
            assert image(kv) == before

    def teardown(self) -> None:
        if hasattr(self, "tree"):
            for kv, _, _ in self.running:
                kv.free()
            self.tree.clear()
            assert len(self.tree) == 0 and self.store.held == 0 and self.tree.held == 0


Trees.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestTrees = Trees.TestCase


def test_a_branch_costs_what_its_parent_does_not_hold() -> None:
    """Thirty-two texts that begin alike hold the beginning once, although each computed it alone."""
    store, shared = make(), text(5, 10 * PAGE)
    tree = Radix(store, GRID)
    for i in range(32):
        ids = [*shared, *text(100 + i, PAGE)]
        tree.put(np.array(ids, np.int32), state(store, ids))
    assert store.held == (10 + 32) * store.open_layout.block
    tree.clear()
    assert store.held == 0


def test_a_conversation_holds_each_page_once() -> None:
    """A page that was half full when a turn ended is the next turn's too."""
    store, ids = make(), text(6, 200)
    tree = Radix(store, GRID)
    kv = store.new()
    for n in (20, 50, 90, 200):
        grow(kv, ids[:n])
        tree.put(np.array(ids[:n], np.int32), store.fork(kv))
    kv.free()
    assert store.held == -(-200 // PAGE) * store.open_layout.block
    while len(tree) > 1:
        tree.drop(next(b for b in tree if not b.below))
    assert tree.find(np.array(ids, np.int32))[1] == 20
    assert store.held == 2 * store.open_layout.block


def test_only_leaves_leave() -> None:
    store = make()
    tree = Radix(store, GRID)
    for n in (20, 40):
        tree.put(np.array(TRUNK[:n], np.int32), state(store, TRUNK[:n]))
    upper = next(b for b in tree if b.below)
    with pytest.raises(ValueError, match="below it"):
        tree.drop(upper)
    with pytest.raises(ValueError, match="below it"):
        tree.drop(tree.root)
    assert tree.find(np.array([49, *TRUNK], np.int32)) == (tree.root, 0)


def test_users_are_counted_and_what_they_hold_does_not_come_back() -> None:
    store, ids = make(), text(8, 64)
    tree = Radix(store, GRID)
    leaf = tree.put(np.array(ids, np.int32), state(store, ids))
    running = [store.fork(leaf.kv) for _ in range(3)]
    assert tree.users(leaf) == 3
    assert tree.frees(leaf) == tree.could_free(leaf) == 0 == tree.held
    for kv in running:
        kv.free()
    assert tree.users(leaf) == 0
    assert tree.frees(leaf) == tree.could_free(leaf) == tree.held == store.held
    tree.clear()
