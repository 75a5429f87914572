"""Sealed pages in a file that is mapped into memory, of which few lie in memory at a time.

Rows of sealed pages are written once and read where a query chooses them, so what nobody chose lately can
lie on a disk. A block's address is that of memory as ever: who reads a page that is not there waits for the
disk. The native runner is told which are not (`FileArena.marks`), and once a row has chosen asks the system
for all that are missing, so that attention waits for one of them and not for each. Units are the system's
own pages; those of rows come and go as the residency method says, those of a selector's index stay. After a
step the units that it read and wrote count as used; where more than the
method's `room` are in memory then, its victims are given back to the system. A step itself may read more: a
prompt's rows choose many pages. Where a group's rows take less than a unit of a block (small heads whose
rows are kept apart), its pages stay.

The file has no name, so nothing is left of it whatever ends the process. Its space is reserved slab by
slab, so a full disk is an `OSError` of the sequence that asked for more and never a fault in the middle of
a step.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.kv.arena import Arena
from pronghorn.kv.layout import Layout
from pronghorn.ops.ref import Ops
from pronghorn.types import Array, Ints

if TYPE_CHECKING:
    from pronghorn.kv.store import SeqKV, Store
    from pronghorn.slots import Residency

UNIT = mmap.PAGESIZE
SLAB = 32 << 20  # each slab holds a file descriptor: 16 GB take 512


class NoPages:
    """All rows stay in memory."""

    def used(self, kvs: Sequence[SeqKV], seen: Sequence[NDArray[np.uint8]]) -> None:
        pass

    def read_whole(self, kv: SeqKV) -> None:
        pass

    def settle(self) -> None:
        pass

    def close(self) -> None:
        pass


class FileArena(Arena):
    """Blocks in a file without a name in `folder`. Who reads by their addresses tells what, in `marks`."""

    def __init__(self, ops: Ops, layout: Layout, folder: str) -> None:
        super().__init__(ops, layout.block, -(-layout.block // UNIT) * UNIT, SLAB)
        self.folder = folder
        self.maps: list[mmap.mmap | None] = []
        self.per_block = self.stride // UNIT
        rows = layout.block - layout.index * len(layout.rows)
        self.own = rows // UNIT if layout.index else self.per_block  # units of a block that come and go
        begin = [more or at for at, more in zip(layout.rows, layout.more, strict=True)]
        self.first = np.array(layout.rows) // UNIT  # of what is read for a member: also one that it lies on
        self.end = np.minimum((np.array([*begin[1:], rows]) - 1) // UNIT + 1, self.own)
        heads = 1 + max(head for group in layout.groups for _, head in group)
        self.members = [np.array([layer * heads + head for layer, head in ms]) for ms in layout.groups]
        self.seen = np.zeros(0, bool)  # by unit: read or written since the last look
        self.inside = np.zeros(0, bool)  # in memory
        self.last = np.zeros(0, np.int64)  # number of the step that used it last, 0: nobody wants it
        self.fresh = False  # there are units that the disk does not have yet
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._f = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed in `close`

    def _slab(self, i: int) -> Array:
        size, n = self.per_slab * self.stride, self.per_slab * self.per_block
        try:
            _reserve(self._f.fileno(), i * size, size)
        except OSError as error:
            raise OSError(
                error.errno,
                f"no room for {size >> 20} MiB more of stored rows in {self.folder!r} ({error.strerror}): "
                "free some, name another folder, or let fewer requests run at a time",
            ) from None
        memory = mmap.mmap(self._f.fileno(), size, offset=i * size)
        memory.madvise(mmap.MADV_RANDOM)  # what lies beside a chosen page is of no use
        if i == len(self.maps):
            self.maps.append(None)
            self.seen, self.inside = (np.append(a, np.zeros(n, bool)) for a in (self.seen, self.inside))
            self.last = np.append(self.last, np.zeros(n, np.int64))
        self.maps[i] = memory
        return np.frombuffer(memory, np.uint8).reshape((self.per_slab, self.stride))

    def read(self, ids: Ints, offset: int, dtype: str, shape: tuple[int, ...]) -> Array:
        self.touch(ids, offset, int(np.prod(shape)) * self.ops.dtype_of(dtype).itemsize)
        return super().read(ids, offset, dtype, shape)

    def write(self, ids: Ints, offset: int, dtype: str, values: Array) -> None:
        super().write(ids, offset, dtype, values)
        self.touch(ids, offset, values.nbytes // max(len(ids), 1))
        self.fresh = True

    def copy(self, block: int) -> int:
        new = super().copy(block)
        self.touch(np.array([block, new], np.int32), 0, self.block)
        self.fresh = True
        return new

    def drop(self, ids: Ints) -> None:
        super().drop(ids)
        gone = ids[self.refs[ids] == 0].astype(np.int64)
        self.last[(gone[:, None] * self.per_block + np.arange(self.per_block)).reshape(-1)] = 0

    def _release(self, i: int) -> None:
        n = self.per_slab * self.per_block
        self.slabs[i] = self.maps[i] = None  # unmapped with the array over it
        self.inside[i * n : (i + 1) * n] = self.seen[i * n : (i + 1) * n] = False

    def marks(self, kv: SeqKV) -> NDArray[np.uint8]:
        """(layers * KV heads, pages): 2 for a sequence's sealed pages that are not in memory, else 0."""
        pages = max(len(s.blocks) for s in kv.sealed)
        out = np.zeros((sum(len(rows) for rows in self.members), pages), np.uint8)
        for s, rows in zip(kv.sealed, self.members, strict=True):
            away = 2 * (~self.inside).view(np.uint8).reshape(-1, self.per_block)[s.blocks]
            for i in range(int((self.end - self.first).max())):
                some = np.flatnonzero(self.first + i < self.end)
                out[rows[some], : len(s.blocks)] |= away[:, self.first[some] + i].T
        return out

    def touch(self, ids: Ints, offset: int, size: int) -> None:
        """So many bytes of these blocks are in memory now."""
        units = np.arange(offset // UNIT, min((offset + size - 1) // UNIT + 1, self.own))
        self.seen[ids.astype(np.int64)[:, None] * self.per_block + units] = True

    def give(self, units: NDArray[np.int64]) -> None:
        """Let the system have the memory of these units; the file has what they hold. Raises `OSError` where
        it does not."""
        if self.fresh:
            os.fdatasync(self._f.fileno())
            self.fresh = False
        n = self.per_slab * self.per_block
        units = np.sort(units)
        starts = np.append(0, np.flatnonzero((np.diff(units) != 1) | (units[1:] % n == 0)) + 1)[: len(units)]
        sizes = np.diff(starts, append=len(units)) * UNIT
        file, cached = self._f.fileno(), hasattr(os, "posix_fadvise")
        for first, size in zip(units[starts].tolist(), sizes.tolist(), strict=True):
            memory = self.maps[first // n]
            assert memory is not None
            memory.madvise(mmap.MADV_DONTNEED, first % n * UNIT, size)
            if cached:  # by the system too
                os.posix_fadvise(file, first * UNIT, size, os.POSIX_FADV_DONTNEED)
        self.inside[units] = False

    def close(self) -> None:
        self._f.close()


class Pages:
    """The sealed pages of a store, which has none yet, in a file; `method` says which `room` bytes stay."""

    def __init__(self, store: Store, method: Residency, folder: str, room: int) -> None:
        if store.ops.torch is not None:
            raise MethodError("stored rows go to a disk from this machine's own memory: use a CPU backend")
        self.store, self.method, self.room = store, method, max(room // UNIT, 1)
        self.arena = store.sealed_arena = FileArena(store.ops, store.sealed_layout, folder)
        self._step = 0
        self._stuck = False  # the disk failed: nothing leaves memory any more

    def used(self, kvs: Sequence[SeqKV], seen: Sequence[NDArray[np.uint8]]) -> None:
        """seen: of each sequence (layers * KV heads, pages), 1 for the sealed pages that a step read."""
        a = self.arena
        for kv, marks in zip(kvs, seen, strict=False):
            for s, rows in zip(kv.sealed, a.members, strict=True):
                member, page = np.nonzero(marks[rows, : len(s.blocks)] == 1)
                first, end = a.first[member], a.end[member]
                block = s.blocks[page].astype(np.int64) * a.per_block
                for i in range(int((end - first).max(initial=0))):
                    a.seen[(block + first + i)[first + i < end]] = True

    def read_whole(self, kv: SeqKV) -> None:
        """Somebody reads all rows of a sequence."""
        for s in kv.sealed:
            self.arena.touch(s.blocks, 0, self.arena.block)

    def settle(self) -> None:
        """Count what was used since the last call, and give back what the method can do without."""
        a = self.arena
        self._step += 1
        seen = np.flatnonzero(a.seen)
        a.seen[seen] = False
        a.inside[seen], a.last[seen] = True, 0
        a.last[self.method.want(seen)] = self._step
        over = int(np.count_nonzero(a.inside)) - self.room
        if over <= 0 or self._stuck:
            return
        held = np.flatnonzero(a.inside)
        try:  # some more than must, so that it is not asked for a few in every step
            a.give(self.method.victims(min(over + self.room // 32, len(held)), held, a.last[held]))
        except OSError as error:
            self._stuck = True
            warnings.warn(
                f"stored rows stay in memory, as {a.folder!r} does not take them: {error.strerror}",
                stacklevel=2,
            )

    def close(self) -> None:
        self.arena.close()


def _reserve(file: int, at: int, size: int) -> None:
    """Raises `OSError` where the disk has no room."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, at, size)
        return
    zeros = bytes(1 << 20)
    for first in range(at, at + size, len(zeros)):
        os.pwrite(file, zeros[: at + size - first], first)
