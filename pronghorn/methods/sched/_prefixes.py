"""Groups of prompts by common prefixes, for `batch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

SHORTEST = 16  # tokens that a prefix must have to be worth a group


@dataclass
class Group:
    """Prompts that begin alike, in the order of their tokens. prefix: tokens that all of them share."""

    members: list[int]
    prefix: int

    @property
    def saved(self) -> int:
        """Prompt rows that need not run when the prefix is computed once."""
        return (len(self.members) - 1) * self.prefix


@dataclass
class _Node:
    """A prefix that is the longest common one of some prompts; the best way to group those below it."""

    depth: int
    members: list[int] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    saved: int = 0

    def add(self, child: _Node) -> None:
        self.members += child.members
        self.groups += child.groups
        self.saved += child.saved

    def close(self) -> _Node:
        """One group, if no grouping below saves more."""
        whole = Group(self.members, self.depth)
        if self.depth >= SHORTEST and whole.saved >= self.saved:
            self.groups, self.saved = [whole], whole.saved
        return self


def groups(prompts: Sequence[Sequence[int]]) -> list[Group]:
    """The partition into groups of one common prefix each that saves the most prompt rows."""
    arrays = [np.asarray(p, np.int32) for p in prompts]
    keys = [a.astype(">i4").tobytes() for a in arrays]  # compared as the tokens are, but fast
    order = sorted(range(len(keys)), key=keys.__getitem__)
    stack = [_Node(0)]
    for i, this in enumerate(order):
        common = _common(arrays[this], arrays[order[i + 1]]) if i + 1 < len(order) else 0
        child = _Node(len(arrays[this]), [this], [Group([this], len(arrays[this]))])
        while stack[-1].depth > common:
            stack[-1].add(child)
            child = stack.pop().close()
        if stack[-1].depth < common:
            stack.append(_Node(common))
        stack[-1].add(child)
    return stack[0].groups


def _common(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n
