"""What the engine asks of a runner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pronghorn.types import Ints, Rows, StepOut

if TYPE_CHECKING:
    from pronghorn.kv.store import SeqKV
    from pronghorn.model.bind import Bound
    from pronghorn.ops.ref import Ops
    from pronghorn.slots import Selector


class Runner(Protocol):
    """Executes the tape over one step's rows."""

    ops: Ops  # the memory that the store lives in

    @property
    def read_bytes(self) -> int:
        """Bytes of KV that attention read in the last step; 0 where nobody counts them."""
        ...

    @property
    def seen(self) -> Sequence[NDArray[np.uint8]]:
        """Where the store's sealed pages are `paged` and are read by their addresses: of each sequence of the
        last step (layers * KV heads, pages), 1 for those that it read."""
        ...

    def run(self, rows: Rows, kvs: Sequence[SeqKV], taps: bool) -> StepOut:
        """Run all rows. Each attends to every sealed row (or the pages a selector picks) and open row of
        its sequence `kvs[rows.seq]`, and to its ancestors in the step. The new rows stay in the tail. What
        it returns may be overwritten by the next step."""
        ...

    def commit(self, row: Ints, addr: NDArray[np.uint64], block: Ints, slot: Ints) -> None:
        """Copy rows `row` of the last step from the tail to the open places that `Store.reserve` gave."""
        ...

    def top(self, logits: NDArray[Any], n: int) -> Ints:
        """(rows, n) ids of the largest logits (rows, n_vocab), largest first, ties to the lower id; -1
        past the end of a small vocabulary."""
        ...


def sources(selector: Selector, bound: Bound) -> list[int]:
    """`Selector.sources`; a layer whose source does not run reads everything."""
    there = {op.attrs["layer"] for op in bound.ops if op.kind == "attend"} | {-1}
    return [s if s in there else -1 for s in selector.sources(bound.n_layers)]


def visible(rows: Rows) -> NDArray[np.bool_]:
    """(n, n): row i sees row j of this step, that is, j is i or an ancestor of it."""
    seen = np.zeros((rows.n, rows.n), bool)
    for i, p in enumerate(rows.parent):
        if p >= 0:
            seen[i] = seen[p]
        seen[i, i] = True
    return seen


def check(rows: Rows, n_seqs: int, n_vocab: int) -> None:
    """Raises `ValueError` on rows that would read out of bounds."""
    n = rows.n
    order = np.arange(n)
    bad: dict[str, Any] = {
        "token id": (rows.ids < 0) | (rows.ids >= n_vocab),
        "sequence": (rows.seq < 0) | (rows.seq >= n_seqs),
        "parent": (rows.parent < -1) | (rows.parent >= order),
        "position": rows.pos < 0,
    }
    has = rows.parent >= 0
    bad["parent's sequence"] = has & (rows.seq[np.where(has, rows.parent, 0)] != rows.seq)
    for what, wrong in bad.items():
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"row {i} of {n}: {what} out of range")
