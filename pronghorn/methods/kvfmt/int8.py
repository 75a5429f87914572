"""Keys and values in 8 bits: symmetric, one scale for each row of each head (the per-token scheme of
ZeroQuant, Yao et al., 2022, arXiv 2206.01861, applied to the cache).

A row's scale is its largest magnitude / 127, rounded to bfloat16. The rounding costs nothing that shows
and makes packing repeatable: unpacked rows pack to the same bytes, so a page that is filled up later
keeps what it held. A value is off by half a scale at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronghorn.types import Array, Field, Guarantee, Traits


@dataclass(frozen=True)
class Int8:
    traits = Traits(Guarantee.APPROXIMATE)
    open = "own"
    group = 1
    codes = ()  # its fields have kernels of their own
    error = (1 + 2.0**-8) / 254  # of a row's largest magnitude

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return (
            Field("k", "int8", (dim, page), rows=1),
            Field("v", "int8", (page, dim)),
            Field("ks", "float32", (page,)),
            Field("vs", "float32", (page,)),
        )

    def pack(self, k: Array, v: Array, ops: Any) -> dict[str, Array]:
        kq, ks = self._rows(k, ops)
        vq, vs = self._rows(v, ops)
        return {"k": ops.xp.permute_dims(kq, (0, 2, 1)), "v": vq, "ks": ks, "vs": vs}

    def unpack(self, fields: dict[str, Array], dim: int, ops: Any) -> tuple[Array, Array]:
        k = ops.cast(ops.xp.permute_dims(fields["k"], (0, 2, 1)))
        v = ops.cast(fields["v"])
        return k * ops.cast(fields["ks"])[..., None], v * ops.cast(fields["vs"])[..., None]

    def _rows(self, x: Array, ops: Any) -> tuple[Array, Array]:
        """x (n_pages, page, dim) -> codes int8 likewise, scales float32 (n_pages, page)."""
        xp = ops.xp
        top = ops.to(xp.max(xp.abs(x), axis=-1), "float32")
        scale = ops.to(ops.to(top / 127, "bfloat16"), "float32")
        by = ops.to(scale, str(x.dtype).removeprefix("torch."))[..., None]
        code = xp.round(x / xp.where(by > 0, by, xp.ones_like(by)))  # half to even
        return ops.to(xp.clip(code, -127, 127), "int8"), scale
