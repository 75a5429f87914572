"""A bounded folder of states that survives restarts.

A record is an image (`kv.image`) in a file of its own: the rows of a text from `at` on, and the key of the
record that holds those before. So many texts that begin alike write their common beginning once, and where a
text parts from a stored one nothing is rewritten. The folder may hold records of several models and methods
and be used by several processes: a file's name begins with the fingerprint, and no file is ever changed.

A record is written beside its name, synced, renamed, and the folder synced: a process that is killed leaves
either a whole record or none. Before rows are served the tokens are compared and both digests recomputed;
what fails is removed and counted. Writing happens on a thread of its own, which reads pages that a fork
holds for it; forks are given back on the caller's thread, in `release`. A folder that cannot be written is
read only, after one warning.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from pronghorn.kv import image
from pronghorn.kv.image import NONE, SIZE, Head, ImageError, Tables
from pronghorn.kv.layout import PAGE
from pronghorn.kv.radix import common, usable_rows
from pronghorn.types import Ints

if TYPE_CHECKING:
    from pronghorn.kv.store import SeqKV, Store

log = logging.getLogger("pronghorn")

QUEUE = 32  # states that wait to be written, at most
LEAST = PAGE  # rows of a record: fewer are sooner computed than read
HOUR = 3600.0  # after which a record's worth has halved
SCAN = 2.0  # seconds between looks at what other processes did
STALE = 600.0  # seconds after which an unfinished file is nobody's


@dataclass(eq=False)
class Record:
    """One file. ids: the whole text; it holds the rows from `at` on, `above` the others."""

    name: str
    ids: Ints
    at: int
    n_sealed: int
    grid: int
    size: int
    used: float
    above: Record | None = None
    below: int = 0
    hits: int = 0

    @property
    def worth(self) -> float:
        """Likelihood of use (hits, halved every hour) times seconds saved per byte (rows further on in a text
        attend to more), on a logarithmic scale: by it records leave."""
        return self.used + HOUR * math.log2((1 + self.hits) * (1 + self.at / 8192))

    def chain(self) -> list[Record]:
        """It and those it needs, nearest first."""
        out: list[Record] = [self]
        while (above := out[-1].above) is not None:
            out.append(above)
        return out


@dataclass
class Counted:
    """What happened since the folder was opened."""

    written: int = 0
    read: int = 0
    damaged: int = 0  # records that failed a check and were removed
    evicted: int = 0
    skipped: int = 0  # states that came while the queue was full


class Disk:
    """Records of one store under `folder`, which all together take at most `limit` bytes there."""

    def __init__(self, store: Store, folder: str | Path, limit: int, fingerprint: str) -> None:
        self.store, self.folder, self.limit = store, Path(folder), limit
        self.fingerprint = image.digest(f"{image.VERSION} {fingerprint}".encode(), image.layout_digest(store))
        self.counted = Counted()
        self.trouble = ""  # why nothing is written any more
        self.rate = 5e8  # bytes read per second, checks included, as measured
        self._mark = self.fingerprint.hex()[:16] + "-"
        self._records: dict[str, Record] = {}
        self._owners: dict[bytes, list[Record]] = {}  # by the digest of a text's beginning, whole pages
        self._others: dict[str, tuple[int, float]] = {}  # size and time of files that are not ours to read
        self._lock = threading.RLock()
        self._jobs: list[tuple[Future[None], SeqKV]] = []  # what is written, and what holds its pages
        self._thread = ThreadPoolExecutor(1, "pronghorn-disk")
        self._scanned, self._stamp = 0.0, -1
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._tidy()
            self._scan()
        except OSError as e:
            self._stop(e)

    # ------------------------------------------------------------------ reading

    def find(self, ids: Ints) -> tuple[Record | None, int]:
        """The record that gives a text most rows, and how many."""
        with self._lock:
            self._look()
            best, most = None, 0
            for k, r in reversed(self._along(ids)):
                if most >= (k + 1) * PAGE:
                    break
                n = common(r.ids, ids)
                n = usable_rows(n, r.n_sealed, r.grid)
                if n > most:
                    best, most = r, n
            return best, most

    def has(self, ids: Ints, n_sealed: int, grid: int) -> bool:
        """Whether a text's state is a record of its own."""
        return self._name(ids, n_sealed, grid) in self._records

    def seconds(self, record: Record) -> float:
        """What reading a record and those it needs would take."""
        chain = record.chain()
        return sum(r.size for r in chain) / self.rate + 2e-4 * len(chain)

    def read(self, record: Record, ids: Ints, base: SeqKV, rows: int) -> SeqKV | None:
        """The state of a record of a text that begins like `ids`; None when a check fails, which also removes
        the record. base: a state whose first `rows` rows are those of `ids`; they are not read again."""
        began, size = time.perf_counter(), 0
        with self._lock:
            chain = record.chain()
        kv = self.store.new()
        for i, r in enumerate(chain):
            n = min(r.at, rows)
            if n == r.at > 0 and self._continues(r, base):
                kv = self.store.fork(base)
                chain = chain[: i + 1]
                break
        r = record
        try:
            for r in reversed(chain):
                self.store.cut(kv, r.at)
                self._append(kv, r, ids)
                size += r.size
        except (ImageError, OSError, ValueError) as e:
            kv.free()
            self._remove(r.name, damaged=not isinstance(e, FileNotFoundError))
            return None
        self._measure(size, time.perf_counter() - began)
        with self._lock:
            for r in chain:
                r.hits += 1
                r.used = time.time()
                with contextlib.suppress(OSError):
                    os.utime(self.folder / r.name)
            self.counted.read += 1
        return kv

    def _continues(self, r: Record, base: SeqKV) -> bool:
        n = usable_rows(min(r.at, base.length), base.n_sealed, r.grid)
        return n == r.at and min(base.n_sealed, r.at) == min(r.n_sealed, r.at)

    def _append(self, kv: SeqKV, r: Record, ids: Ints) -> None:
        with (self.folder / r.name).open("rb") as f:
            h, t = self._head(f)
            n = min(len(ids), r.at)
            if h.at != r.at or not np.array_equal(t.ids, r.ids[r.at :]) or (r.ids[:n] != ids[:n]).any():
                raise ImageError("the record is of another text")
            image.build(kv, h, t, np.frombuffer(f.read(h.data + 1), np.uint8))

    def _head(self, f: BinaryIO) -> tuple[Head, Tables]:
        size = os.fstat(f.fileno()).st_size
        if size > self.limit:
            raise ImageError("the record is larger than the folder may be")
        head = f.read(SIZE)
        h = image.parse(head, size)
        return h, image.tables(h, head, f.read(h.tables), self.store, self.fingerprint)

    def _measure(self, size: int, seconds: float) -> None:
        if size > 1 << 16:
            self.rate += 0.5 * (size / max(seconds, 1e-6) - self.rate)

    # ------------------------------------------------------------------ writing

    def offer(self, ids: Ints, kv: SeqKV, grid: int) -> bool:
        """Take over a fork of the state of a text and write it in the background; False when it isn't."""
        self.release()
        if self.trouble or len(self._jobs) >= QUEUE:
            self.counted.skipped += 1
            kv.free()
            return False
        self._jobs.append((self._thread.submit(self._try, ids, kv, grid), kv))
        return True

    def release(self) -> bool:
        """Give back pages that have been written; whether there were any."""
        done = [kv for job, kv in self._jobs if job.done()]
        self._jobs = [pair for pair in self._jobs if pair[1] not in done]
        for kv in done:
            kv.free()
        return len(done) > 0

    def cancel(self) -> bool:
        """Memory is short: give back what waits to be written, too; whether there was any."""
        for job, _ in self._jobs:
            job.cancel()
        return self.release()

    def flush(self) -> None:
        """Return when everything offered is on the disk, or given up."""
        wait([job for job, _ in self._jobs])
        self.release()

    def close(self) -> None:
        """Write what waits, end the thread."""
        self.flush()
        self._thread.shutdown()

    def _try(self, ids: Ints, kv: SeqKV, grid: int) -> None:
        try:
            self._write(ids, kv, grid)
        except Exception as e:  # whatever it is, answers do not depend on this thread
            self._stop(e)

    def _write(self, ids: Ints, kv: SeqKV, grid: int) -> None:
        with self._lock:
            name = self._name(ids, kv.n_sealed, grid)
            above, at = self._place(ids, kv, grid)
            if self.trouble or name in self._records or len(ids) - at < LEAST:
                return
            if self.find(ids)[1] > len(ids) - LEAST:
                return
        parent = bytes.fromhex(above.name.partition("-")[2]).ljust(32, b"\0") if above else NONE
        parts = image.dump(kv, self.fingerprint, ids[at:], parent, at, grid)
        size = sum(memoryview(p).nbytes for p in parts)
        if not self._room(size, above):
            return
        temp = self.folder / f"{self._mark}{os.getpid()}.{threading.get_ident()}.part"
        try:
            with os.fdopen(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as f:
                f.writelines(parts)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temp, self.folder / name)
            self._sync()
        except OSError:
            with contextlib.suppress(OSError):
                temp.unlink()
            raise
        with self._lock:
            self._add(Record(name, ids.copy(), at, kv.n_sealed, grid, size, time.time(), above))
            self.counted.written += 1

    def _name(self, ids: Ints, n_sealed: int, grid: int) -> str:
        raw = np.ascontiguousarray(ids, "<i4").tobytes()
        return self._mark + image.digest(self.fingerprint, f"{grid} {n_sealed} ".encode(), raw).hex()[:40]

    def _sync(self) -> None:
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _place(self, ids: Ints, kv: SeqKV, grid: int) -> tuple[Record | None, int]:
        """The record whose rows a new one can go on from, and where it would begin."""
        best, most = None, 0
        for _, r in reversed(self._along(ids)):
            n, s = common(r.ids, ids), kv.n_sealed
            if r.n_sealed == s <= n:
                at = s + (n - s) // PAGE * PAGE
            else:
                at = min(n, s, r.n_sealed) // grid * grid
            if r.grid != grid or at <= most:
                continue
            with contextlib.suppress(ImageError):
                image.start(kv, at)
                best, most = r, at
        return best, most

    def _stop(self, e: Exception) -> None:
        with self._lock:
            if not self.trouble:
                self.trouble = str(e) or type(e).__name__
                log.warning("prefixes are no longer written to %s: %s", self.folder, self.trouble)

    # ------------------------------------------------------------------ the index

    @property
    def held(self) -> int:
        """Bytes of all records in the folder."""
        with self._lock:
            return sum(r.size for r in self._records.values()) + sum(n for n, _ in self._others.values())

    def __len__(self) -> int:
        return len(self._records)

    def _along(self, ids: Ints) -> list[tuple[int, Record]]:
        """Records that share whole pages of tokens with a text, with the number of pages."""
        found: dict[Record, int] = {}
        for k, key in enumerate(_keys(ids), 1):
            owners = self._owners.get(key)
            if owners is None:
                break
            found.update(dict.fromkeys(owners, k))
        return sorted(((k, r) for r, k in found.items()), key=lambda pair: pair[0])

    def _add(self, r: Record) -> None:
        self._records[r.name] = r
        if r.above is not None:
            r.above.below += 1
        for key in _keys(r.ids)[r.at // PAGE :]:
            self._owners.setdefault(key, []).append(r)

    def _forget(self, r: Record) -> None:
        """It and what cannot be read without it leave the index."""
        for other in [x for x in self._records.values() if r in x.chain()]:
            del self._records[other.name]
            if other.above is not None:
                other.above.below -= 1
            for key in _keys(other.ids)[other.at // PAGE :]:
                owners = self._owners[key]
                owners.remove(other)
                if not owners:
                    del self._owners[key]

    def _remove(self, name: str, damaged: bool = True) -> None:
        with self._lock:
            if name in self._records:
                self._forget(self._records[name])
            self.counted.damaged += damaged
            self._unlink(name)

    def _unlink(self, name: str) -> None:
        self._others.pop(name, None)
        with contextlib.suppress(OSError):
            (self.folder / name).unlink()

    def _room(self, size: int, above: Record | None) -> bool:
        """Evict until `size` more bytes fit; what a record is to stand on stays."""
        with self._lock:
            self._look()
            keep = set(above.chain()) if above else set()
            if any(r.name not in self._records for r in keep):
                return False
            while self.held + size > self.limit:
                leaves = [(r.worth, r.name) for r in self._records.values() if not r.below and r not in keep]
                leaves += [(used, name) for name, (_, used) in self._others.items()]
                if not leaves:
                    return False
                self._remove(min(leaves)[1], damaged=False)
                self.counted.evicted += 1
            return True

    def _look(self) -> None:
        """See what other processes wrote and removed."""
        if time.monotonic() - self._scanned > SCAN:
            with contextlib.suppress(OSError):
                if self.folder.stat().st_mtime_ns != self._stamp:
                    self._scan()
            self._scanned = time.monotonic()

    def _scan(self) -> None:
        with self._lock:
            self._stamp = self.folder.stat().st_mtime_ns
            with os.scandir(self.folder) as entries:
                files = [e for e in entries if _ours(e.name) and e.is_file(follow_symlinks=False)]
                seen = {e.name: e.stat() for e in files}
            for r in [r for name, r in self._records.items() if name not in seen]:
                if r.name in self._records:
                    self._forget(r)
            self._others = {n: (s.st_size, s.st_mtime) for n, s in seen.items() if n not in self._records}
            new = [n for n in self._others if n.startswith(self._mark)]
            found = {name: h for name in new if (h := self._peek(name)) is not None}
            for name in found:
                self._resolve(name, found)

    def _peek(self, name: str) -> tuple[Head, Tables] | None:
        try:
            with (self.folder / name).open("rb") as f:
                return self._head(f)
        except ImageError:
            self._remove(name)
        except OSError:
            pass
        return None

    def _resolve(self, name: str, found: dict[str, tuple[Head, Tables]]) -> None:
        """Add a record and those it needs, if all of them are there. Others only take up space."""
        names = []
        while name in found and name not in self._records and name not in names:
            names.append(name)
            parent = found[name][0].parent
            name = "" if parent == NONE else self._mark + parent.hex()[:40]
        above = self._records.get(name)
        for name in reversed(names):
            h, t = found[name]
            fits = bool(h.at) == (h.parent != NONE) == (above is not None) and len(t.ids) == h.length - h.at
            if not fits or (above is not None and h.at > len(above.ids)):
                return
            ids = np.concatenate([above.ids[: h.at], t.ids]) if above else t.ids
            if name != self._name(ids, h.length - h.n_open, h.grid):
                self._remove(name)
                return
            size, used = self._others.pop(name)
            above = Record(name, ids, h.at, h.length - h.n_open, h.grid, size, used, above)
            self._add(above)

    def _tidy(self) -> None:
        """Remove what killed processes left unfinished."""
        for path in self.folder.glob("*.part"):
            with contextlib.suppress(OSError, ValueError):
                pid = int(path.name.partition("-")[2].split(".")[0])
                if time.time() - path.stat().st_mtime > STALE or not _alive(pid):
                    path.unlink()


def _ours(name: str) -> bool:
    mark, dash, key = name.partition("-")
    return len(mark) == 16 and dash == "-" and len(key) == 40


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _keys(ids: Ints) -> list[bytes]:
    """A digest for each whole page of tokens and all before it."""
    raw = np.ascontiguousarray(ids, "<i4").tobytes()
    h = blake2b(digest_size=16)
    out = []
    for at in range(0, len(ids) // PAGE * PAGE * 4, PAGE * 4):
        h.update(raw[at : at + PAGE * 4])
        out.append(h.digest())
    return out
