"""Memory for slabs: side by side in mappings, in huge pages once there are many.

With pages of 4 KiB, attention waits for addresses of what it reads as well as for the memory. A huge page
is there as a whole as soon as a part of it is written, so slabs lie in such ones only when three mappings are
full: what is held stays what is used, to a fiftieth. Then those three move there too, once (8 ms each).
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAPPING = 32 << 20  # of addresses; memory is taken as slabs are written
HUGE_FROM = 3  # mappings that are full: 48 huge pages of 2 MiB
COLLAPSE = 25  # MADV_COLLAPSE, which `mmap` does not name: Linux 6.1
LINUX = sys.platform == "linux"


class Slabs:
    """Slabs of `size` bytes by number, each on a boundary of the system's pages."""

    def __init__(self, size: int) -> None:
        self.size, self.step = size, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        # Elsewhere memory goes back for certain only with its mapping.
        self.per_map = max(1, MAPPING // self.step) if LINUX else 1
        self.maps: dict[int, mmap.mmap] = {}
        self.live: set[int] = set()
        self.huge = False  # some mapping lies in huge pages

    def take(self, i: int) -> NDArray[np.uint8]:
        """The bytes of slab i, which nobody has, zeroed."""
        m, at = divmod(i, self.per_map)
        if m not in self.maps:
            self.maps[m] = mmap.mmap(-1, self.per_map * self.step, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if LINUX and len(self.live) >= HUGE_FROM * self.per_map:
                self._grow([self.maps[m]] if self.huge else list(self.maps.values()))
        self.live.add(i)
        return np.frombuffer(self.maps[m], np.uint8, self.size, at * self.step)

    def give(self, i: int) -> None:
        """Slab i goes back to the system; nobody reads its bytes any more."""
        self.live.discard(i)
        m, at = divmod(i, self.per_map)
        if self.live.isdisjoint(range(m * self.per_map, (m + 1) * self.per_map)):
            del self.maps[m]  # unmapped with the last array over it
        else:
            self.maps[m].madvise(mmap.MADV_DONTNEED, at * self.step, self.step)
        if self.huge and len(self.live) < HUGE_FROM * self.per_map:
            self._shrink()

    def _grow(self, maps: Sequence[mmap.mmap]) -> None:
        """Huge pages for what comes into mappings, of which the last is new, and for what is in them."""
        with contextlib.suppress(OSError):  # a system without them
            for memory in maps:
                memory.madvise(mmap.MADV_HUGEPAGE)
                self.huge = True
            for memory in maps[:-1]:
                memory.madvise(COLLAPSE)

    def _shrink(self) -> None:
        """What huge pages hold beside slabs in use goes back, and no more of them come."""
        self.huge = False
        for m, memory in self.maps.items():
            memory.madvise(mmap.MADV_NOHUGEPAGE)
            for at in range(self.per_map):
                if m * self.per_map + at not in self.live:
                    memory.madvise(mmap.MADV_DONTNEED, at * self.step, self.step)
