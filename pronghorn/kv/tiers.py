"""Rows of preempted sequences, kept outside the arena (FastSwitch, Shen et al., 2024, arXiv 2411.18424).

Writing is asynchronous and incremental: pages go out on a thread of their own while the engine goes on, and a
sequence that leaves again writes only pages that its copy doesn't have. A committed row never changes until a
barrier seals it, and sealed pages are only appended to unless a plan rewrote them (`SeqKV.rewritten`), so a
page of the copy is good for as long as it begins with the same row and holds as many.

Pages are read on that thread while the swapped sequence still holds them, and given back on the caller's, in
`settle`. A copy that could not be written or read is lost, which costs time only: its rows are run again.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from pronghorn.kv.arena import Arena
from pronghorn.kv.layout import PAGE
from pronghorn.types import Ints

if TYPE_CHECKING:
    from pronghorn.kv.store import SeqKV, Store

OPEN = -1  # in place of a group: the open zone

Page = tuple[int, int]  # group and index, or OPEN and the first row's number in the text
Place = tuple[int, int]  # rows that the page holds, and where its copy lies


class Ticket:
    """A sequence that left: `Swap.back` gives it back."""

    def __init__(self) -> None:
        self.length = 0  # rows
        self.copied = 0  # pages written, in all
        self.lost = False
        self._pages: dict[Page, Place] = {}
        self._coming: dict[Page, Place] = {}  # pages under way
        self._rewritten = 0
        self._kv: list[SeqKV] = []  # while its pages are not given back yet
        self._job: Future[None] = Future()
        self._tables: Any = None


class NoSwap:
    """No slower place: a preempted sequence runs its rows again."""

    def seconds(self, n_bytes: int) -> float:
        return math.inf

    def out(self, kv: SeqKV) -> Ticket:
        raise NotImplementedError("nothing can be swapped out")

    def back(self, ticket: Ticket) -> SeqKV:
        raise NotImplementedError("nothing was swapped out")

    def drop(self, ticket: Ticket) -> None:
        pass

    def settle(self, block: bool = False) -> int:
        return 0

    def close(self) -> None:
        pass


class Swap:
    """Copies of sequences of one store in a file without a name in `folder`; "": in the host's memory."""

    def __init__(self, store: Store, folder: str) -> None:
        self.store = store
        self.rate = 1e9  # bytes per second, as measured when copies came back
        self._file: _File | _Memory = _File(folder) if folder else _Memory()
        self._thread = ThreadPoolExecutor(1, "pronghorn-swap")
        self._copies: list[tuple[ref[SeqKV], Ticket]] = []  # of sequences that came back
        self._leaving: list[Ticket] = []

    def out(self, kv: SeqKV) -> Ticket:
        """Take over a sequence's state; its pages are free once written (`settle`)."""
        self.settle()
        ticket = self._copy_of(kv)
        want = _pages(kv)
        if ticket._rewritten != kv.rewritten:
            self._give(ticket, [p for p in ticket._pages if p[0] != OPEN])
        good = {p for p, (_, n) in want.items() if ticket._pages.get(p, (0, 0))[0] == n}
        self._give(ticket, [p for p in ticket._pages if p not in good])
        new = [p for p in want if p not in good]
        ticket._coming = {p: (want[p][1], self._file.place(self._arena(p).block)) for p in new}
        ticket.length, ticket.lost, ticket._rewritten, ticket._kv = kv.length, False, kv.rewritten, [kv]
        ticket._tables = [
            kv.open_pos.copy(), kv.n_open, kv.length, kv.next_pos, kv.dropped, kv.rewritten,
            [(s.fill.copy(), s.pos.copy(), dict(s.notes)) for s in kv.sealed],
        ]  # fmt: skip
        blocks = {p: want[p][0] for p in new}
        ticket._job = self._thread.submit(self._write, ticket, blocks)
        self._leaving.append(ticket)
        return ticket

    def back(self, ticket: Ticket) -> SeqKV:
        """The state, bit-equal to what left; an empty one where its copy was lost."""
        if ticket._kv:  # its pages are still there
            self._stop(ticket)
            (kv,), ticket._kv = ticket._kv, []
        elif ticket.lost:
            return self.store.new()
        else:
            began = time.perf_counter()
            try:
                kv = self._read(ticket)
            except OSError:
                self.drop(ticket)
                ticket.lost = True
                return self.store.new()
            size = self.store.bytes_of(kv)
            if size > 1 << 16:
                self.rate += 0.5 * (size / max(time.perf_counter() - began, 1e-6) - self.rate)
        self._copies.append((ref(kv), ticket))
        return kv

    def _copy_of(self, kv: SeqKV) -> Ticket:
        """The ticket with which it came back, or a new one. Copies of sequences that ended are dropped."""
        found, live = Ticket(), []
        for other, ticket in self._copies:
            back = other()
            if back is kv:
                found = ticket
            elif back is not None and back.length >= ticket.length:  # one that was freed has none
                live.append((other, ticket))
            else:
                self._give(ticket, list(ticket._pages))
        self._copies = live
        return found

    def drop(self, ticket: Ticket) -> None:
        """Neither the state nor its copy is needed any more."""
        self._stop(ticket)
        for kv in ticket._kv:
            kv.free()
        ticket._kv = []
        self._give(ticket, list(ticket._pages))
        self._copies = [pair for pair in self._copies if pair[1] is not ticket]

    def settle(self, block: bool = False) -> int:
        """Give back the pages of sequences that are written (block: wait for all that leave); how many."""
        if block:
            wait([t._job for t in self._leaving])
        gone = [t for t in self._leaving if t._job.done()]
        for t in gone:
            self._leaving.remove(t)
            for kv in t._kv:
                kv.free()
            t._kv = []
        return len(gone)

    def seconds(self, n_bytes: int) -> float:
        """What bringing back so many bytes takes."""
        return n_bytes / self.rate

    def close(self) -> None:
        self.settle(block=True)
        self._thread.shutdown()
        self._file.close()

    # ------------------------------------------------------------------ inside

    def _arena(self, page: Page) -> Arena:
        return self.store.open_arena if page[0] == OPEN else self.store.sealed_arena

    def _stop(self, ticket: Ticket) -> None:
        """Nothing is written for it any more."""
        if ticket in self._leaving:
            self._leaving.remove(ticket)
            if not ticket._job.cancel():
                wait([ticket._job])
            self._let(ticket, ticket._coming)

    def _let(self, ticket: Ticket, places: dict[Page, Place]) -> None:
        """Give back places that nothing was written to."""
        for p, (_, at) in places.items():
            self._file.give(at, self._arena(p).block)
        ticket._coming = {}

    def _give(self, ticket: Ticket, pages: list[Page]) -> None:
        for p in pages:
            self._file.give(ticket._pages.pop(p)[1], self._arena(p).block)

    def _write(self, ticket: Ticket, blocks: dict[Page, int]) -> None:
        """On the thread. Only what is written is the ticket's."""
        places = ticket._coming
        try:
            for arena, pages in self._by_arena(blocks):
                ids = np.array([blocks[p] for p in pages], np.int32)
                data = arena.ops.numpy(arena.read(ids, 0, "uint8", (arena.block,)))
                self._file.write([places[p][1] for p in pages], data)
            ticket.copied += len(blocks)
            ticket._pages.update(places)
            ticket._coming = {}
        except (OSError, MemoryError):
            ticket.lost = True
            self._let(ticket, places)

    def _by_arena(self, pages: Any) -> Iterator[tuple[Arena, list[Page]]]:
        for arena in (self.store.open_arena, self.store.sealed_arena):
            these = [p for p in pages if self._arena(p) is arena]
            for i in range(0, len(these), 64):
                yield arena, these[i : i + 64]

    def _read(self, ticket: Ticket) -> SeqKV:
        store, kv = self.store, self.store.new()
        kv.open_pos, kv.n_open, kv.length, kv.next_pos, kv.dropped, kv.rewritten, groups = ticket._tables
        kv.open_pos = kv.open_pos.copy()
        first = kv.length - kv.n_open
        kv.open = self._fill([(OPEN, first + i) for i in range(0, kv.n_open, PAGE)], ticket, kv)
        kv.open_addr = store.open_arena.address(kv.open)
        for g, (fill, pos, notes) in enumerate(groups):
            s = kv.sealed[g]
            s.blocks = self._fill([(g, i) for i in range(len(fill))], ticket, kv)
            s.fill, s.pos, s.addr = fill.copy(), pos.copy(), store.sealed_arena.address(s.blocks)
            s.notes = dict(notes)
        store._point(kv)
        return kv

    def _fill(self, pages: list[Page], ticket: Ticket, kv: SeqKV) -> Ints:
        if not pages:
            return np.zeros(0, np.int32)
        arena = self._arena(pages[0])
        try:
            data = self._file.read([ticket._pages[p][1] for p in pages], arena.block)
        except OSError:
            kv.free()
            raise
        blocks = arena.alloc(len(pages))
        arena.write(blocks, 0, "uint8", arena.ops.array(data))
        return blocks


def _pages(kv: SeqKV) -> dict[Page, tuple[int, int]]:
    """Block and rows of each page."""
    first = kv.length - kv.n_open
    out = {(OPEN, first + i * PAGE): (int(b), min(PAGE, kv.n_open - i * PAGE)) for i, b in enumerate(kv.open)}
    for g, s in enumerate(kv.sealed):
        out.update({(g, i): (int(b), int(n)) for i, (b, n) in enumerate(zip(s.blocks, s.fill, strict=True))})
    return out


class _Slots:
    """Places for pages; those given back are used again, lowest first."""

    def __init__(self) -> None:
        self.end = 0
        self._free: dict[int, list[int]] = {}

    def place(self, size: int) -> int:
        free = self._free.get(size)
        if free:
            return free.pop()
        self.end += size
        return self.end - size

    def give(self, at: int, size: int) -> None:
        self._free.setdefault(size, []).append(at)


class _File(_Slots):
    def __init__(self, folder: str) -> None:
        super().__init__()
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._f = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed in `close`

    def write(self, at: list[int], data: NDArray[np.uint8]) -> None:
        for i, n in _runs(at, data.shape[1]):
            raw, place = np.ascontiguousarray(data[i : i + n]).reshape(-1).data, at[i]
            while raw:
                done = os.pwrite(self._f.fileno(), raw, place)
                raw, place = raw[done:], place + done

    def read(self, at: list[int], size: int) -> NDArray[np.uint8]:
        out = np.empty((len(at), size), np.uint8)
        for i, n in _runs(at, size):
            if os.preadv(self._f.fileno(), [out[i : i + n].reshape(-1).data], at[i]) != n * size:
                raise OSError("the copy ends too early")
        return out

    def close(self) -> None:
        self._f.close()


class _Memory(_Slots):
    def __init__(self) -> None:
        super().__init__()
        self._pages: dict[int, NDArray[np.uint8]] = {}

    def write(self, at: list[int], data: NDArray[np.uint8]) -> None:
        self._pages.update(zip(at, map(np.copy, data), strict=True))

    def read(self, at: list[int], size: int) -> NDArray[np.uint8]:
        return np.stack([self._pages[i] for i in at])

    def give(self, at: int, size: int) -> None:
        super().give(at, size)
        self._pages.pop(at, None)

    def close(self) -> None:
        self._pages.clear()


def _runs(at: list[int], size: int) -> Iterator[tuple[int, int]]:
    """(first, number) of places that follow each other."""
    first = 0
    for i in range(1, len(at) + 1):
        if i == len(at) or at[i] != at[i - 1] + size:
            yield first, i - first
            first = i
