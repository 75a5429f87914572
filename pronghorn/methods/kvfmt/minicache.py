"""MiniCache (Liu et al., 2024, arXiv 2405.14366): two neighbouring deep layers share their directions.

From layer `start` of the depth on, layers go in pairs. Of each row of a head, keys and values by themselves,
both layers' directions become one on the arc between them, `towards` of the way to the upper layer (on the
chord where the angle is small). A page of the lower layer holds this direction at the lower layer's length,
in bfloat16; one of the upper layer lies on it and has only a quotient of lengths for each row, in float32.
The `distinct` rows of a page that are farthest apart (1 of 16 for the paper's 5 %) are not merged: the lower
page has its own, and the upper layer's is beside it.

Lengths are exact up to the rounding of bfloat16, and so is everything where both layers are alike; a
direction is off by no more than the angle between the layers. Departures: every page has as many distinct
rows, where the paper picks them from a whole prompt; pages are merged when they are sealed, an answer's too,
and rows behind the last barrier stay as they ran in each layer. Rows that a policy keeps on are merged again
with their new neighbours. Directions in 4 bits are not here. All layers must keep the same rows.

At 64 channels a pair takes 55 % of bfloat16's bytes, and a model whose upper half is merged 77 %; at 32, 56
and 78 %. It is meant for models whose neighbouring layers have a mean cosine of 0.8 or more. No model at hand
is near that, by any two neighbours: keys and values have -0.30 to 0.17 and -0.02 to 0.03 in the bundled model
(95 rows of a story), -0.25 to 0.34 and -0.02 to 0.02 in stories260K, 0.00 to 0.08 and -0.03 to 0.01 in the
look-up model. That one still answers both questions about each of 80 texts of 300 tokens, but 70 with
`distinct=8`, which merges less, and 7 of 20 with `start=0.25`: do not use it on such a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE, exact_fields
from pronghorn.methods.kvfmt import _beside
from pronghorn.types import Array, Field, Guarantee, Traits

NEAR = 1e-4  # a sine, below which the arc is its chord
MOST = 2.0**120  # of a quotient


@dataclass(frozen=True)
class Minicache:
    start: float = 0.5  # share of the depth that is not merged
    towards: float = 0.6  # where between lower (0) and upper layer (1) their direction is
    distinct: int = 1  # rows of a page that are not merged

    traits = Traits(Guarantee.APPROXIMATE)
    open = "own"
    group = PAGE
    codes = ()
    error = 2.0**-8  # of rows of layers that no other lies on

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1:
            raise MethodError(f"minicache: start is 0 to 1, not {self.start}")
        if not 0 <= self.towards <= 1:
            raise MethodError(f"minicache: towards is 0 to 1, not {self.towards}")
        if not 1 <= self.distinct <= 8:
            raise MethodError(f"minicache: distinct is 1 to 8, not {self.distinct}")

    def under(self, n_layers: int) -> dict[int, int]:
        return {i + 1: i for i in range(int(n_layers * self.start), n_layers - 1, 2)}

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return exact_fields("bfloat16", dim)

    def more(self, page: int, dim: int) -> tuple[Field, ...]:
        other = Field("other", "bfloat16", (2, self.distinct, dim), rows=-1)
        return (Field("by", "float32", (2, page), rows=1), other)

    def pack(self, k: Array, v: Array, ops: Any) -> dict[str, Array]:
        return {"k": ops.to(ops.xp.permute_dims(k, (0, 2, 1)), "bfloat16"), "v": ops.to(v, "bfloat16")}

    def unpack(self, fields: dict[str, Array], dim: int, ops: Any) -> tuple[Array, Array]:
        return ops.cast(ops.xp.permute_dims(fields["k"], (0, 2, 1))), ops.cast(fields["v"])

    def join(self, fields: dict[str, Array], k: Array, v: Array, ops: Any) -> dict[str, Array]:
        below = self.unpack(fields, k.shape[2], ops)
        (lk, by_k, other_k), (lv, by_v, other_v) = (
            self._join(ops.to(a, "float64"), ops.to(b, "float64"), ops)
            for a, b in zip(below, (k, v), strict=True)
        )
        by, other = (ops.xp.stack(a, axis=1) for a in ((by_k, by_v), (other_k, other_v)))
        return {**self.pack(lk, lv, ops), "by": ops.to(by, "float32"), "other": ops.to(other, "bfloat16")}

    def part(self, fields: dict[str, Array], dim: int, ops: Any) -> tuple[Array, Array]:
        xp, out = ops.xp, []
        for i, x in enumerate(self.unpack(fields, dim, ops)):
            by, other = ops.cast(fields["by"][:, i]), ops.cast(fields["other"][:, i])
            alone = by < 0
            number = xp.clip(_rank(1 - ops.to(alone, "int32"), ops), 0, self.distinct - 1)
            x = xp.where(alone[..., None], other[_beside.each(len(x), ops, x), number], x)
            out.append(x * by[..., None])
        return out[0], out[1]

    def _join(self, low: Array, x: Array, ops: Any) -> tuple[Array, Array, Array]:
        """Of two layers' rows (n, page, dim), float64: those of the lower page; (n, page) by what they are
        multiplied for the upper layer, below zero where one of (n, distinct, dim) stands for it, in turn."""
        xp, above = ops.xp, _beside.above_zero
        a, b = _length(low, ops), _length(x, ops)
        u, w = low / above(a, ops)[..., None], x / above(b, ops)[..., None]
        cos = xp.clip(_beside.total(xp.permute_dims(u * w, (2, 0, 1)), 0, ops), -1, 1)
        angle = xp.acos(cos)
        sine = xp.sin(angle)
        chord, t = sine < NEAR, self.towards
        by_u, by_w = (
            xp.where(
                chord, xp.full_like(sine, s), xp.sin(s * angle) / xp.where(chord, xp.ones_like(sine), sine)
            )
            for s in (1 - t, t)
        )
        e = by_u[..., None] * u + by_w[..., None] * w
        size = _length(e, ops)
        e = xp.where((size > 0)[..., None], e / above(size, ops)[..., None], u)
        # a row of length 0 above needs no direction, one below has none to give; rounded, as libraries' last
        # bits may differ
        far = xp.where(
            b > 0, xp.where(a > 0, xp.round(-cos * 2.0**30), xp.full_like(a, 2.0**31)), -(2.0**31) + 0 * a
        )
        alone = _rank(-far, ops) < self.distinct
        low = _beside.bfloat(xp.where(alone[..., None], low, e * a[..., None]), ops)
        by = xp.clip(b / above(_length(low, ops), ops), 0, MOST)
        lanes = xp.argsort(1 - ops.to(alone, "int32"), axis=1, stable=True)[:, : self.distinct]
        other = -x[_beside.each(len(x), ops, x), lanes]
        return low, xp.where(alone, -xp.ones_like(by), by), other


def _length(x: Array, ops: Any) -> Array:
    return ops.xp.sqrt(ops.xp.sum(x * x, axis=2))


def _rank(x: Array, ops: Any) -> Array:
    """The number of each of x (n, page) in rising order, of equal ones the first first."""
    return ops.xp.argsort(ops.xp.argsort(x, axis=1, stable=True), axis=1, stable=True)
