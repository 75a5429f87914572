"""Where things lie inside a block.

A page is `PAGE` rows of one head. Keys are stored transposed, (dim, PAGE), so that one vector register
holds the same channel of a page's keys and a score sums its channels in one fixed order wherever the key
lies; values are (PAGE, dim). A block of the open zone holds a page of every layer and head; a block of
the sealed zone holds a page of every head of one group.

    open block            [layer][head] K (dim, PAGE)  V (PAGE, dim)          in the open dtype
    sealed block, exact   [head of the group] K  V, then [head] index fields  likewise
    sealed block, packed  [head of the group] the format's fields, then [head] index fields

Some members may lie on another member of the block, and have a few fields of their own in place of a page.

Index fields lie side by side, as they are read without the rest: a few lines of every block.

Codes (`types.Codes`) lie in 32-bit words. One of keys holds as many channels of one row as fit, (word, PAGE,
4) bytes: even channels from its lowest bit up, odd ones from the middle up, so that a shift and a mask leave
pairs. One of values: channel i is in byte i % 4, from the lowest bits up; rows are filled up to 32 channels.
Factors of rows are (group, scale and offset, PAGE), those of channels (scale and offset, dim), in that order
flat where there are both; those of a product of low rank follow in the same field, (rank, PAGE) of rows and
(rank, dim) of channels. Where rows are salient their further bits follow the codes, laid as codes are but for
these rows alone, in their order, and then 16 bits that tell them, from the lowest up. Spikes are pairs of a
place, channel * PAGE + row, and the bits of a bfloat16 number.
Numbers of 16 bits lie as in an exact page, keys (kept channel, PAGE), with a bit for each channel that is
kept, from the lowest up, in place of factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from pronghorn.types import Codes, Field

PAGE = 16
ALIGN = 64


def itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def exact_fields(dtype: str, dim: int) -> tuple[Field, ...]:
    """A page stored exactly: k transposed, v by rows."""
    return (Field("k", dtype, (dim, PAGE), rows=1), Field("v", dtype, (PAGE, dim)))


def coded_fields(k: Codes, v: Codes, dim: int) -> tuple[Field, ...]:
    """A page in codes, each field beside what is read with it."""
    words, wide = -(-dim * k.bits // 32), -(-dim // 32) * 32
    keys = Field("k", "uint8", (words, PAGE, 4), rows=1)
    values = Field("v", "uint8", (PAGE, wide * v.bits // 8))
    more = [
        (Field(of + "x", "uint8", (c.salient * size + 2,), rows=-1),) if c.salient else ()
        for of, c, size in (("k", k, 4 * words), ("v", v, wide * v.bits // 8))
    ]
    if k.bits == 16:
        keys = Field("k", "bfloat16", (n_kept(k, dim), PAGE), rows=1)
    if v.bits == 16:
        values = Field("v", "bfloat16", (PAGE, dim))
    return (keys, *more[0], *_beside("k", k, dim), values, *more[1], *_beside("v", v, dim))


def n_kept(c: Codes, dim: int) -> int:
    """Channels that a page has, one at least."""
    return max(1, dim - int((1 - c.kept) * dim + 1e-9))


def n_spikes(c: Codes, dim: int) -> int:
    return int(c.spikes * PAGE * dim + 1e-9)


def _beside(of: str, c: Codes, dim: int) -> tuple[Field, ...]:
    """Fields behind the codes: factors or bits of channels, and spikes, where there are any."""
    name = of + "f"
    if c.bits == 16:
        return (Field(name, "uint8", (-(-dim // 8),), rows=-1),) if n_kept(c, dim) < dim else ()
    each, low = 2 if c.offset else 1, c.rank * (PAGE + dim)
    shape: tuple[int, ...] = (-(-dim // c.group), each, PAGE) if c.group else (each * dim,)
    factors = Field(name, "bfloat16", shape, rows=2 if c.group else -1)
    if low or (c.group and c.channels):
        factors = Field(name, "bfloat16", (math.prod(shape) + low + c.channels * dim,), rows=-1)
    spikes = n_spikes(c, dim)
    return (factors, Field(of + "s", "int16", (spikes, 2), rows=-1)) if spikes else (factors,)


@dataclass(frozen=True)
class Layout:
    """Byte offsets in the blocks of one zone.

    groups: for each group, its members as (layer, head). Fields are a page's own, those of its index, and
    those that a member has which lies on another. rows: where each member's own fields begin, or those of the
    one below it; more: where what it has itself does, 0 for all others.
    """

    fields: tuple[Field, ...]
    groups: tuple[tuple[tuple[int, int], ...], ...]
    n_own: int  # fields that are not index
    offsets: tuple[int, ...]  # of each field from the start of a member, or of a member's index
    member: int  # bytes of one member (one page of one head)
    index: int  # bytes of a member's index
    block: int  # bytes of a block (groups are equally large)
    n_index: int = field(repr=False)  # fields that are
    rows: tuple[int, ...] = field(repr=False)
    more: tuple[int, ...] = field(repr=False)

    @staticmethod
    def of(
        own: tuple[Field, ...], groups: list[list[tuple[int, int]]], index: tuple[Field, ...] = (),
        more: tuple[Field, ...] = (), under: Mapping[int, int] = MappingProxyType({}),
    ) -> Layout:  # fmt: skip
        """under: by members that lie on others, before them; those have the fields `more`."""
        offsets: list[int] = []
        sizes: list[int] = []
        for part in (own, index, more):
            at = 0
            for f in part:
                offsets.append(at)
                at += -(-itemsize(f.dtype) * int(np.prod(f.shape)) // ALIGN) * ALIGN
            sizes.append(at)
        frozen = tuple(tuple(g) for g in groups)
        member, rest, beside = sizes
        rows: list[int] = []
        upon: list[int] = []
        end = 0
        for i in range(len(groups[0])):
            rows.append(rows[under[i]] if i in under else end)
            upon.append(end if i in under else 0)
            end += beside if i in under else member
        block = end + rest * len(groups[0])
        return Layout(
            own + index + more, frozen, len(own), tuple(offsets), member, rest, block, len(index),
            tuple(rows), tuple(upon),
        )  # fmt: skip

    @property
    def index_fields(self) -> range:
        """Their numbers."""
        return range(self.n_own, self.n_own + self.n_index)

    def own(self, index: int) -> list[int]:
        """Numbers of the other fields that say what a member's rows are, those of one below it among them."""
        more = range(self.index_fields.stop, len(self.fields)) if self.more[index] else ()
        return [*range(self.n_own), *more]

    def where(self, group: int, index: int, field: int) -> int:
        """Offset of a field of the group's member number `index`."""
        if field < self.n_own:
            return self.rows[index] + self.offsets[field]
        if field >= self.index_fields.stop:
            return self.more[index] + self.offsets[field]
        return self.block - (len(self.rows) - index) * self.index + self.offsets[field]


def lying(below: Mapping[int, int], members: list[tuple[int, int]]) -> dict[int, int]:
    """Numbers of members that lie on others, and of those; below: the same of layers."""
    at = {m: i for i, m in enumerate(members)}
    if any((layer, 0) not in at for layer in (*below, *below.values())):
        raise ValueError("a format lays pages of one layer on another's, which may keep other rows")
    return {i: at[below[layer], head] for i, (layer, head) in enumerate(members) if layer in below}


def grouping(rows: str, n_layers: int, n_kv: int) -> list[list[tuple[int, int]]]:
    """Groups of (layer, head) whose kept rows are the same, for granularity "seq", "layer", "head"."""
    every = [[(i, h) for h in range(n_kv)] for i in range(n_layers)]
    if rows == "seq":
        return [[m for layer in every for m in layer]]
    if rows == "layer":
        return every
    if rows == "head":
        return [[m] for layer in every for m in layer]
    raise ValueError(f"rows is 'seq', 'layer' or 'head', not {rows!r}")
