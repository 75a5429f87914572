"""A state as bytes: `dump` and `load`.

An image holds a `SeqKV`, or what it has beyond the first `at` rows of another one, its parent's. It knows
the model and the methods by their fingerprint, the layout of pages by a digest, and the tokens whose rows it
holds. All numbers are little-endian. Nothing in an image is believed: both parts carry a digest, every length
is checked against the bytes that are there before anything is allocated, and the tables must fit each other.

    head   HEAD, fixed size
    tables tokens, positions of open pages, then for each group: fills and positions of sealed pages, then the
           notes of rows: names, and each one's numbers for each group
    data   open pages, then the sealed pages of each group, as they lie in memory
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.kv.arena import Arena
from pronghorn.kv.layout import PAGE
from pronghorn.types import Ints

if TYPE_CHECKING:
    from pronghorn.kv.store import SeqKV, Store

VERSION = 2
MAGIC = b"PRONGKV\0"
NONE = bytes(32)  # no parent
ROWS_MOST = 1 << 26  # of an image
NAME = 32  # bytes of a note's name
NOTES = 16  # of an image, at most
_HEAD = struct.Struct("<8sII32s32s32s8Q32s32s")
SIZE = _HEAD.size

Bytes = NDArray[np.uint8]


class ImageError(Exception):
    """Bytes that are no image, not a whole one, or one of another model, layout or text."""


def digest(*parts: Any) -> bytes:
    h = blake2b(digest_size=32)
    for p in parts:
        h.update(p)
    return h.digest()


def layout_digest(store: Store) -> bytes:
    """Of everything that says what the bytes of a page mean."""
    zones = (store.open_layout, store.sealed_layout)
    return digest(repr((PAGE, sys.byteorder, store.open_dtype, zones)).encode())


@dataclass(frozen=True)
class Head:
    """What an image says of itself.

    fingerprint: of model and methods; layout: of pages; parent: key of the image that holds the first `at`
    rows, or NONE; n_ids: tokens stored here, those of rows `at` to `length` (none where the text isn't
    known); next_pos, dropped: as the `SeqKV` has them; n_open: its open rows; grid: multiples at which sealed
    rows may be cut; tables, data: bytes of the two parts; data_digest: of the second.
    """

    fingerprint: bytes
    layout: bytes
    parent: bytes
    dropped: bool
    at: int
    length: int
    next_pos: int
    n_open: int
    grid: int
    n_ids: int
    tables: int
    data: int
    data_digest: bytes

    def pack(self, tables: bytes) -> bytes:
        head = _HEAD.pack(
            MAGIC, VERSION, int(self.dropped), self.fingerprint, self.layout, self.parent, self.at,
            self.length, self.next_pos, self.n_open, self.grid, self.n_ids, self.tables, self.data,
            self.data_digest, NONE,
        )  # fmt: skip
        return head[:-32] + digest(head[:-32], tables)

    @property
    def whole(self) -> int:
        """Bytes of the image."""
        return SIZE + self.tables + self.data


def _raw(arena: Arena, blocks: Ints) -> Bytes:
    out: Bytes = arena.ops.numpy(arena.read(blocks, 0, "uint8", (arena.block,)))
    return out


def _ints(a: Any) -> bytes:
    return np.ascontiguousarray(a, "<i4").tobytes()


def dump(
    kv: SeqKV, fingerprint: bytes, ids: Ints | tuple[()] = (), parent: bytes = NONE, at: int = 0,
    grid: int = 1,
) -> list[bytes | memoryview]:  # fmt: skip
    """The parts of an image: of all rows, or of those from `at` on, where a page must begin (`start`).
    ids: the tokens of the rows it holds. Any thread may call it while somebody holds the pages."""
    store = kv.store
    first_open, first_sealed = start(kv, at)
    tables = [_ints(ids), _ints(kv.open_pos[first_open * PAGE :])]
    data = [_raw(store.open_arena, kv.open[first_open:])]
    for s in kv.sealed:
        tables += [
            struct.pack("<2I", first_sealed, len(s.blocks) - first_sealed),
            _ints(s.fill[first_sealed:]), _ints(s.pos[first_sealed * PAGE :]),
        ]  # fmt: skip
        data.append(_raw(store.sealed_arena, s.blocks[first_sealed:]))
    table = b"".join([*tables, *_notes(kv)])
    head = Head(
        fingerprint, layout_digest(store), parent, kv.dropped, at, kv.length, kv.next_pos, kv.n_open, grid,
        len(ids), len(table), sum(d.nbytes for d in data), digest(*data),
    )  # fmt: skip
    return [head.pack(table), table, *(d.reshape(-1).data for d in data)]


def _notes(kv: SeqKV) -> list[bytes]:
    names = sorted({name for s in kv.sealed for name in s.notes})
    out = [struct.pack("<I", len(names))]
    for name in names:
        out.append(name.encode().ljust(NAME, b"\0"))
        for s in kv.sealed:
            a = s.notes.get(name, np.zeros((0, 0), np.float32))
            out += [struct.pack("<I", a.shape[1]), np.ascontiguousarray(a, "<f4").tobytes()]
    return out


def start(kv: SeqKV, at: int) -> tuple[int, int]:
    """Open and sealed pages before row `at`. Raises `ImageError` where no page begins there."""
    if at == 0:
        return 0, 0
    ends = np.cumsum(kv.sealed[0].fill)
    sealed = int(np.searchsorted(ends, min(at, kv.n_sealed), side="right"))
    held = int(ends[sealed - 1]) if sealed else 0
    n_open = max(0, at - kv.n_sealed)
    whole = kv.dropped or any(s.notes for s in kv.sealed)  # not to be cut
    if whole or at > kv.length or held + n_open != at or n_open % PAGE:
        raise ImageError(f"no page begins at row {at}")
    return n_open // PAGE, sealed


def parse(head: bytes, size: int) -> Head:
    """The head of an image of `size` bytes; checks what can be said without its tables."""
    if len(head) < SIZE or head[:8] != MAGIC:
        raise ImageError("these bytes are no image of a state")
    _, version, flags, fingerprint, layout, parent, *numbers, data_digest, _ = _HEAD.unpack(head[:SIZE])
    if version != VERSION:
        raise ImageError(f"the image has version {version}, this program reads {VERSION}")
    at, length, next_pos, n_open, grid, n_ids, n_tables, n_data = numbers
    h = Head(
        fingerprint, layout, parent, flags == 1, at, length, next_pos, n_open, grid, n_ids, n_tables, n_data,
        data_digest,
    )  # fmt: skip
    rows = (h.at, h.length, h.next_pos, h.n_open, h.grid, h.n_ids)
    if flags > 1 or (flags and h.at) or max(rows) > ROWS_MOST or h.grid < 1 or h.n_open > h.length:
        raise ImageError("the image's numbers are out of range")
    if h.whole != size:
        raise ImageError(f"the image has {size} bytes and should have {h.whole}")
    return h


@dataclass(frozen=True)
class Tables:
    """ids: of the image's rows; open_pos; for each group: pages before its own, fills, positions; notes of
    its rows."""

    ids: Ints
    open_pos: Ints
    groups: tuple[tuple[int, Ints, Ints], ...]
    notes: tuple[dict[str, NDArray[np.float32]], ...]


def tables(h: Head, head: bytes, raw: bytes, store: Store, fingerprint: bytes) -> Tables:
    """The tables of an image, everything but its data verified."""
    if h.fingerprint != fingerprint:
        raise ImageError("the image is of another model, or was made under other methods")
    if h.layout != layout_digest(store):
        raise ImageError("the image's pages are laid out otherwise")
    if len(raw) != h.tables or digest(head[: SIZE - 32], raw) != head[SIZE - 32 : SIZE]:
        raise ImageError("the image's head is damaged")
    reader = _Reader(raw)
    ids = reader.ints(h.n_ids)
    n_groups = len(store.sealed_layout.groups)
    before = max(0, h.at - (h.length - h.n_open)) // PAGE if h.at else 0  # open pages of the parent
    n_open = -(-h.n_open // PAGE) - before
    if n_open < 0 or (h.n_ids and h.n_ids != h.length - h.at):
        raise ImageError("the image's tables do not fit its head")
    open_pos = reader.ints(n_open * PAGE)
    groups = []
    for _ in range(n_groups):
        first, n = (int(x) for x in reader.ints(2))
        if first < 0 or n < 0:
            raise ImageError("the image's numbers are out of range")
        groups.append((first, reader.ints(n), reader.ints(n * PAGE)))
    t = Tables(ids, open_pos, tuple(groups), _read_notes(reader, store, [int(f.sum()) for _, f, _ in groups]))
    if reader.left or h.data != _data(store, t):
        raise ImageError("the image's tables do not fit its head")
    every = np.concatenate([open_pos, *(pos for _, _, pos in groups)])
    fills = np.concatenate([fill for _, fill, _ in groups])
    if (every < 0).any() or (every > ROWS_MOST).any() or ((fills < 1) | (fills > PAGE)).any():
        raise ImageError("the image's numbers are out of range")
    if any(int(fill.sum()) > h.length for _, fill, _ in groups):
        raise ImageError("the image holds more rows than its text has")
    return t


def _read_notes(reader: _Reader, store: Store, rows: list[int]) -> tuple[dict[str, NDArray[np.float32]], ...]:
    """Of each group, which has so many rows."""
    out: tuple[dict[str, NDArray[np.float32]], ...] = tuple({} for _ in rows)
    (n_names,) = reader.ints(1)
    if not 0 <= n_names <= NOTES:
        raise ImageError("the image's numbers are out of range")
    for _ in range(n_names):
        name = reader.ints(NAME // 4).astype("<i4").tobytes().rstrip(b"\0").decode("utf-8", "replace")
        for notes, most, members in zip(out, rows, store.sealed_layout.groups, strict=True):
            (n,) = reader.ints(1)
            if not 0 <= n <= most or name in notes:
                raise ImageError("the image's notes do not fit its rows")
            a = reader.ints(int(n) * len(members)).astype("<i4").view("<f4").astype(np.float32)
            if not np.isfinite(a).all():
                raise ImageError("the image's numbers are out of range")
            notes[name] = a.reshape((len(members), int(n)))
    return out


def _data(store: Store, t: Tables) -> int:
    sealed = sum(len(fill) for _, fill, _ in t.groups) * store.sealed_layout.block
    return len(t.open_pos) // PAGE * store.open_layout.block + sealed


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    def ints(self, n: int) -> Ints:
        if 4 * n > self.left:
            raise ImageError("the image's tables end too early")
        self._at += 4 * n
        return np.frombuffer(self._raw, "<i4", n, self._at - 4 * n).astype(np.int32)

    @property
    def left(self) -> int:
        return len(self._raw) - self._at


def build(kv: SeqKV, h: Head, t: Tables, data: Bytes) -> None:
    """Append an image's rows to `kv`, which has exactly the rows before them (none for a whole image)."""
    store = kv.store
    if len(data) != h.data or digest(data) != h.data_digest:
        raise ImageError("the image's pages are damaged")
    _fits(kv, h, t)
    at = len(t.open_pos) // PAGE * store.open_layout.block
    blocks = _place(store.open_arena, data[:at])
    kv.open = np.concatenate([kv.open, blocks])
    kv.open_addr = store.open_arena.address(kv.open)
    kv.open_pos = np.concatenate([kv.open_pos, t.open_pos])
    for s, (_, fill, pos), notes in zip(kv.sealed, t.groups, t.notes, strict=True):
        end = at + len(fill) * store.sealed_layout.block
        s.blocks = np.concatenate([s.blocks, _place(store.sealed_arena, data[at:end])])
        s.fill, s.pos = np.concatenate([s.fill, fill]), np.concatenate([s.pos, pos])
        s.addr = store.sealed_arena.address(s.blocks)
        s.notes.update(notes)
        at = end
    kv.n_open, kv.length, kv.next_pos, kv.dropped = h.n_open, h.length, h.next_pos, h.dropped
    store._point(kv)


def _fits(kv: SeqKV, h: Head, t: Tables) -> None:
    before = len(kv.open) + len(t.open_pos) // PAGE
    own = [len(fill) for _, fill, _ in t.groups]
    firsts = [first for first, _, _ in t.groups]
    if (
        kv.length != h.at or kv.n_open % PAGE or firsts != [len(s.blocks) for s in kv.sealed]
        or before != -(-h.n_open // PAGE) or (kv.n_open and any(own))
    ):  # fmt: skip
        raise ImageError("the image does not continue these rows")
    if h.dropped:
        return
    for s, (_, fill, pos) in zip(kv.sealed, t.groups, strict=True):
        filled = (np.arange(PAGE)[None] < fill[:, None]).reshape(-1)
        found = np.concatenate([pos[filled], t.open_pos[: h.n_open - kv.n_open]])
        sealed = s.n + int(fill.sum())
        fits = sealed + h.n_open == h.length == h.next_pos and len(found) == h.length - h.at
        if not fits or (found != np.arange(h.at, h.length)).any():
            raise ImageError("the image's positions are not those of its rows")


def _place(arena: Arena, data: Bytes) -> Ints:
    blocks = arena.alloc(len(data) // arena.block)
    if len(blocks):
        arena.write(blocks, 0, "uint8", arena.ops.array(data.reshape(len(blocks), arena.block)))
    return blocks


def load(store: Store, fingerprint: bytes, image: bytes) -> SeqKV:
    """The state of a whole image. Raises `ImageError` with the reason."""
    h = parse(image[:SIZE], len(image))
    if h.at or h.parent != NONE:
        raise ImageError("the image holds only the end of a state")
    end = SIZE + h.tables
    t = tables(h, image[:SIZE], image[SIZE:end], store, fingerprint)
    kv = store.new()
    build(kv, h, t, np.frombuffer(image, np.uint8, offset=end))
    return kv
