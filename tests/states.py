"""Stored states whose rows follow from the text alone, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.kv.layout import PAGE
from pronghorn.kv.store import SeqKV, Store
from pronghorn.methods.kvfmt.int8 import Int8
from pronghorn.methods.kvfmt.minicache import Minicache
from pronghorn.methods.select.quest import Quest
from pronghorn.nulls import Dense, ExactKV
from pronghorn.ops.ref import Ops

LAYERS, HEADS, DIM = 2, 2, 4
GRID = 32

# format, selector, groups, dtype of the open zone
KINDS: dict[str, tuple[Any, Any, str, str]] = {
    "fp32": (ExactKV(), Dense(), "seq", "float32"),
    "bf16": (ExactKV(), Dense(), "seq", "bfloat16"),
    "int8": (Int8(), Dense(), "seq", "float32"),
    "int8 of bf16, indexed": (Int8(), Quest(tokens=16), "seq", "bfloat16"),
    "merged, indexed": (Minicache(0.0), Quest(tokens=16), "seq", "bfloat16"),
    "heads": (ExactKV(), Dense(), "head", "float32"),
}


def text(seed: int, n: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 9999, n).tolist()


def ints(ids: Sequence[int]) -> NDArray[np.int32]:
    return np.array(ids, np.int32)


def make(kind: str = "fp32", ops: Ops | None = None) -> Store:
    fmt, selector, rows, dtype = KINDS[kind]
    return Store(
        ops or Ops("float32"), LAYERS, HEADS, DIM, dtype, fmt, selector, rows, [None] * LAYERS
    )  # fmt: skip


def values(ids: Sequence[int]) -> NDArray[np.float32]:
    """(n, LAYERS * HEADS, 2, DIM): each row depends on all tokens up to it."""
    h, out = 17, []
    for t in ids:
        h = (h * 1_000_003 + t + 1) % (1 << 61)
        out.append(h)
    each = np.arange(1, LAYERS * HEADS * 2 * DIM + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (np.array(out, np.uint64)[:, None] * each) >> np.uint64(40)
    return (mixed.astype(np.float32) / (1 << 23) - 1).reshape(-1, LAYERS * HEADS, 2, DIM)


def grow(kv: SeqKV, ids: Sequence[int]) -> None:
    """Commit the rows of `ids` that are missing."""
    store, first = kv.store, kv.length
    new = values(ids)[first:]
    if not len(new):
        return
    at = kv.n_open
    store.reserve(kv, len(new))
    arena, lay = store.open_arena, store.open_layout
    pages = np.arange(at // PAGE, len(kv.open))
    blocks = kv.open[pages]
    slots = np.arange(at, at + len(new)) - pages[0] * PAGE
    for m in range(LAYERS * HEADS):
        for f, spec in enumerate(lay.fields):
            held = arena.read(blocks, lay.where(0, m, f), spec.dtype, spec.shape)
            wide = np.asarray(store.ops.numpy(store.ops.cast(held))).copy()
            for i, slot in enumerate(slots):
                if spec.rows == 1:
                    wide[slot // PAGE, :, slot % PAGE] = new[i, m, f]
                else:
                    wide[slot // PAGE, slot % PAGE] = new[i, m, f]
            arena.write(
                blocks, lay.where(0, m, f), spec.dtype, store.ops.to(store.ops.array(wide), spec.dtype)
            )
    store.extend(kv, range(kv.next_pos, kv.next_pos + len(new)))


def state(store: Store, ids: Sequence[int], sealed: int = 0) -> SeqKV:
    """The state of a text, its first `sealed` rows sealed in steps of GRID."""
    kv = store.new()
    for end in range(GRID, sealed + 1, GRID):
        grow(kv, ids[:end])
        store.seal(kv)
    grow(kv, ids)
    return kv


def image(kv: SeqKV, rows: int = 1 << 30) -> list[bytes]:
    """Everything that a state holds, bit by bit, what is behind the last row left out."""
    store = kv.store
    out = [repr((kv.n_open, kv.length, kv.next_pos, kv.dropped)).encode(), kv.open_pos[: kv.n_open].tobytes()]
    lay = store.open_layout
    live = np.arange(len(kv.open) * PAGE).reshape(-1, PAGE) < kv.n_open
    for m in range(LAYERS * HEADS):
        for f, spec in enumerate(lay.fields):
            a = store.open_arena.read(kv.open, lay.where(0, m, f), spec.dtype, spec.shape)
            wide = np.asarray(store.ops.numpy(store.ops.cast(a)))
            wide = wide.swapaxes(1, 2) if spec.rows == 1 else wide
            out.append(wide[live].tobytes())
    for s in kv.sealed:
        raw = store.ops.numpy(store.sealed_arena.read(s.blocks, 0, "uint8", (store.sealed_layout.block,)))
        out += [s.fill.tobytes(), s.pos.tobytes(), np.asarray(raw).tobytes()]
    return out


def rows_of(kv: SeqKV, n: int) -> list[bytes]:
    """The image of the first n rows."""
    fork = kv.store.fork(kv)
    kv.store.cut(fork, n)
    out = image(fork)
    fork.free()
    return out
