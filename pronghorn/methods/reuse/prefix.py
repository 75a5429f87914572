"""Prefix reuse: a prompt starts from the stored rows of the longest earlier text that it begins with (as
in SGLang's RadixAttention, Zheng et al., 2023, arXiv 2312.07104, with a list for the tree).

States are forks, so pages are shared with the sequence that made them and with those that use them. Of
its open rows a state gives any number; of its sealed ones a multiple of the grid, where the new prompt
would have sealed its own. A state that dropped rows is not kept: what it holds depends on more than the
prefix. The state used longest ago goes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pronghorn.errors import MethodError
from pronghorn.kv.store import SeqKV
from pronghorn.slots import Span
from pronghorn.types import Guarantee, Ints, Traits


@dataclass(eq=False)  # a state is itself, whatever it holds
class _State:
    ids: Ints
    kv: SeqKV
    grid: int

    def usable(self, ids: Ints, rows: int) -> int:
        """Rows that a prompt `ids` can take, at most `rows`."""
        n = max(0, min(len(self.ids), len(ids), rows))
        differ = np.flatnonzero(self.ids[:n] != ids[:n])
        n = int(differ[0]) if len(differ) else n
        return n if n >= self.kv.n_sealed else n // self.grid * self.grid


@dataclass(frozen=True)
class Prefix:
    rows: int = 65536  # stored rows in all; rows that two states share count twice

    traits = Traits(Guarantee.EXACT)

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise MethodError(f"prefix: rows is 1 or above, not {self.rows}")

    @cached_property
    def _states(self) -> list[_State]:
        """Last used last."""
        return []

    def match(self, ids: Sequence[int], rows: int) -> Span | None:
        want = np.asarray(ids, np.int32)
        best, n = None, 0
        for state in self._states:
            usable = state.usable(want, rows)
            if usable >= max(n, 1):
                best, n = state, usable
        if best is None:
            return None
        self._states.remove(best)
        self._states.append(best)
        return Span(n, best.kv)

    def overlap(self, ids: Sequence[int], other: Sequence[int]) -> int:
        n = min(len(ids), len(other))
        differ = np.flatnonzero(np.asarray(ids[:n], np.int32) != np.asarray(other[:n], np.int32))
        return int(differ[0]) if len(differ) else n

    def store(self, ids: Sequence[int], kv: SeqKV, grid: int) -> None:
        new = _State(np.asarray(ids, np.int32)[: kv.length], kv, grid)
        if kv.dropped or not 0 < len(new.ids) <= self.rows:
            kv.free()
            return
        for old in [s for s in self._states if self._covers(new, s)]:
            self._drop(old)
        self._states.append(new)
        while sum(len(s.ids) for s in self._states) > self.rows:
            self._drop(self._states[0])

    def shrink(self) -> bool:
        if self._states:
            self._drop(self._states[0])
            return True
        return False

    def close(self) -> None:
        for state in list(self._states):
            self._drop(state)

    def _covers(self, a: _State, b: _State) -> bool:
        """Whatever b can serve, a can."""
        return (
            a.grid == b.grid
            and a.kv.n_sealed <= b.kv.n_sealed
            and len(a.ids) >= len(b.ids)
            and bool((a.ids[: len(b.ids)] == b.ids).all())
        )

    def _drop(self, state: _State) -> None:
        self._states.remove(state)
        state.kv.free()
