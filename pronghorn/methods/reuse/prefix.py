"""Prefix reuse: a prompt starts from the stored rows of the longest earlier text that it begins with, found
in a radix tree of copy-on-write states (RadixAttention in SGLang, Zheng et al., 2023, arXiv 2312.07104; the
tree is `pronghorn.kv.radix`).

Of its open rows a state gives any number; of its sealed ones a multiple of the grid, where the new prompt
would have sealed its own. A state that dropped rows is not kept: what it holds depends on more than the
prefix.

What leaves first differs from the paper, which takes the leaf used longest ago. Here it is the leaf whose
rows are worth least for the memory that they take, by GreedyDual-Size-Frequency (Cherkasova, 1998):
(1 + hits) x seconds to compute them again / bytes that really come back, plus the worth of the last one that
left when it was last used, so that what nobody asks for grows old. Pages that a running sequence holds do not
come back, so a leaf that has no others stays.

With `disk`, states are also written to a folder, in the background, and read from there when memory has fewer
rows and reading is quicker than computing (`pronghorn.kv.disk`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pronghorn.errors import MethodError
from pronghorn.kv.disk import Disk
from pronghorn.kv.radix import Branch, Radix, common
from pronghorn.types import Guarantee, Ints, Node, Span, Traits

if TYPE_CHECKING:
    from pronghorn.kv.store import SeqKV, Store

BRANCHES = 4096  # of the tree, at most: looking for the least valuable one takes time
AHEAD = 16  # branches that leave after one look


@dataclass
class _Held:
    """What one engine stored."""

    trees: list[Radix] = field(default_factory=list)  # one, once something is stored
    disks: list[Disk] = field(default_factory=list)  # one, if asked for
    seconds: Callable[[int, int], float] = lambda rows, context: 1e-3 * rows
    clock: float = 0.0  # worth of the last branch that left
    next: list[Branch] = field(default_factory=list)  # those that leave next, the first one last
    looked: float = 0.0  # when that was worked out


@dataclass(frozen=True)
class Prefix:
    gb: float = 0.0  # GiB that only stored states hold, at most; 0: what running sequences leave of the limit
    disk: str = ""  # folder for states that outlast the process; "" for none
    disk_gb: float = 8.0  # GiB in that folder, at most

    traits = Traits(Guarantee.EXACT)

    def __post_init__(self) -> None:
        if not self.gb >= 0:
            raise MethodError(f"prefix: gb is 0 (no limit of its own) or above, not {self.gb}")
        if not self.disk_gb > 0:
            raise MethodError(f"prefix: disk_gb is above 0, not {self.disk_gb}")

    @cached_property
    def _held(self) -> _Held:
        return _Held()

    def open(self, store: Store, fingerprint: str, seconds: Callable[[int, int], float]) -> None:
        held = self._held
        if any(t.store is not store for t in held.trees):
            raise MethodError("prefix: these states are another engine's; give each engine its own method")
        held.seconds = seconds
        if self.disk and not held.disks:
            held.disks.append(Disk(store, self.disk, int(self.disk_gb * (1 << 30)), fingerprint))

    def fresh(self) -> Prefix:
        return replace(self, disk="")

    def match(self, ids: Sequence[int], rows: int) -> Span | None:
        want = np.asarray(ids, np.int32)[: max(0, rows)]
        if not len(want):
            return None
        found = [tree.find(want) for tree in self._held.trees]
        for disk in self._held.disks:
            found = self._fetch(disk, want, found)
        for branch, n in found:
            if n:
                self._touch(branch, n)
                return Span(n, branch.kv)
        return None

    def _fetch(self, disk: Disk, want: Ints, found: list[tuple[Branch, int]]) -> list[tuple[Branch, int]]:
        """Rows from the disk, where it has more and reading them is quicker."""
        disk.release()
        record, n = disk.find(want)
        base, have = (found[0][0].kv, found[0][1]) if found else (disk.store.new(), 0)
        if record is None or n <= have or 0 < self._held.seconds(n - have, have) <= disk.seconds(record):
            return found  # nothing is known of the cost before the first step
        kv = disk.read(record, want, base, have)
        if kv is None:
            return found
        tree = self._tree(kv, record.grid)
        if tree is None:
            kv.free()
            return found
        branch = tree.put(record.ids, kv)
        self._bound(tree, branch)
        return [tree.find(want)]

    def overlap(self, ids: Sequence[int], other: Sequence[int]) -> int:
        return common(np.asarray(ids, np.int32), np.asarray(other, np.int32))

    def store(self, ids: Sequence[int], kv: SeqKV, grid: int) -> None:
        text = np.asarray(ids, np.int32)[: kv.length]
        tree = None if kv.dropped or not len(text) else self._tree(kv, grid)
        if tree is None:
            kv.free()
            return
        branch = tree.put(text, kv)
        branch.used, branch.credit = time.monotonic(), self._held.clock
        for disk in self._held.disks:
            disk.offer(text, tree.store.fork(branch.kv), grid)
        self._bound(tree, branch)

    def _tree(self, kv: SeqKV, grid: int) -> Radix | None:
        """The tree, unless it holds states of another grid."""
        held = self._held
        if not held.trees:
            held.trees.append(Radix(kv.store, grid))
        return held.trees[0] if held.trees[0].grid == grid else None

    def _touch(self, branch: Branch, n: int) -> None:
        """Count a hit for each branch whose rows were used."""
        now = time.monotonic()
        for b in branch.path():
            if b.start < n:
                b.hits += 1
                b.used, b.credit = now, self._held.clock

    # ------------------------------------------------------------------ what leaves

    def _bound(self, tree: Radix, new: Branch) -> None:
        limit = self.gb * (1 << 30)
        while len(tree) > BRANCHES or (limit and tree.held > limit):
            if not self._evict(tree, keep=new) and not self._evict(tree, keep=tree.root):
                return

    def _evict(self, tree: Radix, keep: Branch) -> bool:
        """Drop the leaf of least worth, of those that free something."""
        held = self._held
        while True:
            fresh = not held.next
            if fresh:  # a look at all of them serves a few times
                ranked = sorted(
                    (self._worth(tree, b), b.id, b) for b in tree if b is not keep and not b.below
                )
                held.next = [b for worth, _, b in ranked[:AHEAD] if worth < math.inf][::-1]
                held.looked = time.monotonic()
            while held.next:
                leaf = held.next.pop()
                worth = self._worth(tree, leaf)
                alive = leaf.parent is not None and leaf.parent.below.get(int(leaf.run[0])) is leaf
                if alive and leaf is not keep and leaf.used <= held.looked and worth < math.inf:
                    held.clock = max(held.clock, worth)
                    tree.drop(leaf)
                    return True
            if fresh:
                return False

    def _worth(self, tree: Radix, leaf: Branch) -> float:
        size = 0 if leaf.below else tree.frees(leaf) or tree.could_free(leaf)
        saved = (1 + leaf.hits) * self._held.seconds(leaf.end - leaf.start, leaf.start)
        return leaf.credit + saved / size if size else math.inf

    def shrink(self) -> bool:
        held = self._held
        given = [disk.release() for disk in held.disks]
        if any(given) or any(self._evict(t, keep=t.root) for t in held.trees):
            return True
        return any(disk.cancel() for disk in held.disks)

    def close(self) -> None:
        held = self._held
        for disk in held.disks:
            disk.close()
        for tree in held.trees:
            tree.clear()
        held.disks.clear()
        held.trees.clear()
        held.next.clear()

    def disk_counts(self) -> Mapping[str, int]:
        return {what: n for disk in self._held.disks for what, n in asdict(disk.counted).items()}

    def tree(self) -> list[Node]:
        out: list[Node] = []
        for disk in self._held.disks:
            disk.release()
        for tree in self._held.trees:
            stored: set[Branch] = set()
            for b in reversed(list(tree)):  # what lies below first: its records hold these rows too
                if stored.intersection(b.below.values()) or any(
                    disk.has(b.ids(), b.kv.n_sealed, tree.grid) for disk in self._held.disks
                ):
                    stored.add(b)
                up = b.parent.id if b.parent else 0
                out.append(
                    Node(
                        b.id, up, tuple(b.run[:32].tolist()), len(b.run), tree.own(b), b.hits, tree.users(b),
                        b.used, b in stored,
                    )
                )  # fmt: skip
        return out[::-1]
