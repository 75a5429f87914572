"""Blocks of bytes for KV pages: slabs that go back to the system when their last block is freed.

A block is the unit of sharing: it has a reference count, and whoever wants to write to a block held
twice copies it first. Slabs are mapped, at least 256 KiB at a time: the C library, once it has freed a large
array, takes smaller ones from its heap and does not return them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.kv.slabs import Slabs
from pronghorn.ops.ref import Ops
from pronghorn.types import Array, Ints

SLAB = 256 * 1024


class Arena:
    """Blocks of `block` bytes, `stride` apart, on the memory of `ops`. Block ids are stable until freed."""

    def __init__(self, ops: Ops, block: int, stride: int = 0, slab: int = SLAB) -> None:
        self.ops = ops
        self.block, self.stride = block, stride or block
        self.per_slab = max(1, slab // self.stride)
        self._memory = Slabs(self.per_slab * self.stride)
        self.slabs: list[Array] = []  # None where a slab was given back
        self.base = np.zeros(0, np.uint64)  # address of each slab
        self.refs = np.zeros(0, np.int32)
        self.live = np.zeros(0, np.int32)  # blocks in use per slab
        self.n_live = 0  # in all
        self.free_ids: list[int] = []  # sorted, highest first: the lowest id is handed out first

    def alloc(self, n: int) -> Ints:
        """n blocks with one reference each, contents unspecified."""
        while len(self.free_ids) < n:
            self._grow()
        out = np.array([self.free_ids.pop() for _ in range(n)], np.int32)
        self.n_live += n
        self.refs[out] = 1
        np.add.at(self.live, out // self.per_slab, 1)
        return out

    def _grow(self) -> None:
        gone = [i for i, s in enumerate(self.slabs) if s is None]
        i = gone[0] if gone else len(self.slabs)
        slab = self._slab(i)
        address = slab.ctypes.data if isinstance(slab, np.ndarray) else slab.data_ptr()
        if gone:
            self.slabs[i] = slab
            self.base[i] = address
        else:
            self.slabs.append(slab)
            self.base = np.append(self.base, np.uint64(address))
            self.refs = np.append(self.refs, np.zeros(self.per_slab, np.int32))
            self.live = np.append(self.live, np.int32(0))
        first = i * self.per_slab
        self.free_ids = sorted(self.free_ids + list(range(first, first + self.per_slab)), reverse=True)

    def _slab(self, i: int) -> Array:
        if self.ops.torch is not None:
            return self.ops.bytes(self.per_slab, self.stride)
        return self._memory.take(i).reshape((self.per_slab, self.stride))

    def _release(self, i: int) -> None:
        """Nobody holds a block of slab i any more."""
        self.slabs[i] = None
        if self.ops.torch is None:
            self._memory.give(i)

    def keep(self, ids: Ints) -> None:
        """One more reference to each (ids distinct)."""
        self.refs[ids] += 1

    def drop(self, ids: Ints) -> None:
        """One reference less to each (ids distinct); blocks and slabs that nobody holds are freed."""
        if not len(ids):
            return
        self.refs[ids] -= 1
        gone = ids[self.refs[ids] == 0]
        if not len(gone):
            return
        self.n_live -= len(gone)
        np.subtract.at(self.live, gone // self.per_slab, 1)
        self.free_ids = sorted(self.free_ids + gone.tolist(), reverse=True)
        empty = {s for s in set((gone // self.per_slab).tolist()) if self.live[s] == 0}
        if empty:
            for s in empty:
                self._release(s)
            self.free_ids = [b for b in self.free_ids if b // self.per_slab not in empty]

    def shared(self, block: int) -> bool:
        return bool(self.refs[block] > 1)

    def copy(self, block: int) -> int:
        """A private copy of a block; the caller's reference moves to it."""
        new = int(self.alloc(1)[0])
        a, b = divmod(block, self.per_slab), divmod(new, self.per_slab)
        self.slabs[b[0]][b[1]] = self.slabs[a[0]][a[1]]
        self.drop(np.array([block], np.int32))
        return new

    def address(self, ids: Ints) -> NDArray[np.uint64]:
        slab, at = np.divmod(ids.astype(np.int64), self.per_slab)
        return self.base[slab] + (at * self.stride).astype(np.uint64)

    def read(self, ids: Ints, offset: int, dtype: str, shape: tuple[int, ...]) -> Array:
        """(len(ids), *shape) copied from `offset` bytes into each block."""
        size = int(np.prod(shape)) * self.ops.dtype_of(dtype).itemsize
        out = self.ops.bytes(len(ids), size)
        for s, where, at in self._by_slab(ids):
            out[where] = self.slabs[s][at, offset : offset + size]
        return self.ops.view(out, dtype).reshape((len(ids), *shape))

    def write(self, ids: Ints, offset: int, dtype: str, values: Array) -> None:
        """values (len(ids), ...) of the named dtype to `offset` bytes into each block."""
        flat = self.ops.view(values.reshape((len(ids), -1)), "uint8")
        for s, where, at in self._by_slab(ids):
            self.slabs[s][at, offset : offset + flat.shape[1]] = flat[where]

    def _by_slab(self, ids: Ints) -> list[tuple[int, Any, Any]]:
        slab, at = np.divmod(ids, self.per_slab)
        out: list[tuple[int, Any, Any]] = []
        for s in np.unique(slab):
            where = np.flatnonzero(slab == s)
            out.append((int(s), self._index(where), self._index(at[where])))
        return out

    def _index(self, a: NDArray[Any]) -> Any:
        return a if self.ops.torch is None else self.ops.array(a.astype(np.int64))

    @property
    def held(self) -> int:
        """Bytes of blocks in use."""
        return self.n_live * self.block

    @property
    def reserved(self) -> int:
        """Bytes taken from the system."""
        return sum(s is not None for s in self.slabs) * self.per_slab * self.stride
