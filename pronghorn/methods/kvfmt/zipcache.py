"""ZipCache (He et al., 2024, arXiv 2405.14256): values of a channel are divided by the root of its largest
magnitude, then each row has one scale and one offset; keys are rounded by channel (section 4.1).

With `bits=2` and `salient` above 0, so many rows of a page of 16 have 4 bits (section 4.2; the paper's 60 %
are `salient=10`). They are those of most attention by a few queries, divided by how many of these could see
the row: the last 5 % of the queries since the last barrier and as many of the others, picked by position. Of
a prompt of up to 2,048 tokens these are its own, of an answer its last 64; the paper's blocks are of 100. It
is not the default: factors are a page's, so 10 rows of 4 bits take 33 % of bfloat16's bytes at 64 channels,
16 of them 36 %, and rows that queries chose are not shared between requests. What attention gives the queries
behind a prompt is off by 16 % of its length on the look-up model and 26 to 27 % on the bundled one; 28 and 30
to 35 % where the least important rows have the bits, 33 and 40 to 41 % with 2 bits for all, 5 and 8 to 10 %
with 4. Answers of the look-up model do not show it: keys are found with any of them, and of spans that it
copies, at which the prompt's queries did not look, 91, 96, 92 and 100 % of the words are right.

Departures: a channel's largest magnitude, and a channel of keys' range, are those of a page of 16 rows, for
salient and other rows alike, where the paper takes the whole prompt; each page has as many salient rows;
scales and offsets are bfloat16; rows that a policy keeps on are rounded again with their new neighbours.

The error of a value is in units of the largest magnitude of its page.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE, coded_fields
from pronghorn.kv.view import Floats, KVView, rounded
from pronghorn.methods.kvfmt import _beside, _codes, _salient
from pronghorn.types import ROW, Array, Codes, Field, Guarantee, Ints, Said, Traits

PROBES = 0.05  # of queries, the last ones, and as many of the others


@dataclass(frozen=True)
class ZipCache:
    bits: int = 4  # of a code, 2 or 4
    salient: int = 0  # rows of a page of 16 that have 4, where `bits` is 2

    open = "own"
    group = PAGE

    def __post_init__(self) -> None:
        if self.bits not in (2, 4):
            raise MethodError(f"zipcache: bits is 2 or 4, not {self.bits}")
        if not 0 <= self.salient < PAGE or (self.salient and self.bits != 2):
            raise MethodError(f"zipcache: salient is 0 to {PAGE - 1}, with bits=2, not {self.salient}")

    @property
    def traits(self) -> Traits:
        return Traits(Guarantee.APPROXIMATE, taps=("q.new",) if self.salient else ())

    @property
    def error(self) -> float:
        return (1 + 2.0**-5) / ((1 << self.bits) - 1)

    @property
    def codes(self) -> tuple[Codes, Codes]:
        keys, values = Codes(self.bits, group=0), Codes(self.bits, ROW, channels=True)
        return replace(keys, salient=self.salient), replace(values, salient=self.salient)

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return coded_fields(*self.codes, dim)

    def look(self, view: KVView, taps: dict[str, Floats]) -> Said:
        at = probes(taps["q_pos"])
        pos, q = taps["q_pos"][at], taps["q"][:, :, at]
        rising = np.sort(pos)
        said = np.zeros((view.n_layers, view.n_kv, view.n))
        for layer, window in enumerate(view.window.tolist()):
            seen = view.by_kv_head(view.mass(layer, q[layer], pos))
            row = view.pos[layer]
            blind = np.searchsorted(rising, row)
            end = np.searchsorted(rising, row + window) if window else len(pos)
            said[layer] = seen / np.maximum(end - blind, 1)
        return Said(rounded(said), np.zeros((view.n_layers, view.n_kv, 0)))

    def pack(self, k: Array, v: Array, ops: Any) -> dict[str, Array]:
        said = ops.xp.zeros_like(k[..., 0])
        return self.pack_by(k, v, said, said, ops)

    def pack_by(self, k: Array, v: Array, rows: Array, channels: Array, ops: Any) -> dict[str, Array]:
        keys, values = (_salient.wide(c) for c in self.codes)
        by = ops.xp.sqrt(ops.xp.max(ops.xp.abs(v), axis=1, keepdims=True))
        packed = _codes.pack_channels(k, keys, ops), _salient.separated(v, by, values, ops)
        if not self.salient:
            return _codes.fields_of(*packed, self.codes, ops)
        return _salient.fields_of(*packed, _beside.most(rows, self.salient, ops), self.codes, ops)

    def unpack(self, fields: dict[str, Array], dim: int, ops: Any) -> tuple[Array, Array]:
        return _codes.unpack(fields, self.codes, dim, ops)


def probes(pos: Ints) -> Ints:
    """Numbers of the queries that are asked, in rising order, of those at positions `pos`."""
    n = len(pos)
    few = max(1, round(PROBES * n))
    lot = (pos[: n - few].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    others = np.argsort(lot, kind="stable")[:few]
    return np.concatenate([np.sort(others), np.arange(n - few, n)]).astype(np.int32)
