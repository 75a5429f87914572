"""Keys and values in 4 bits: asymmetric round to nearest, a scale and an offset in bfloat16 for every 64
channels of a row (the fine-grained per-token scheme of FlexGen, Sheng et al., 2023, arXiv 2303.06865,
section 5, along the channels of one head).

The offset is a group's smallest value, the scale a 15th of the range, both rounded to bfloat16. A row
takes 36 bytes of each 128 that bfloat16 takes at 64 channels. A scale is 1/64 of the offset at least, so
that packing rows again gives the same bytes; where all of a group is nearly one number, that makes its
steps coarser.

`keys=channel` gives each channel of keys a scale and an offset of its own for the 16 rows of a page, as
KIVI does: channels of keys differ more than rows do. Then rows are packed together, keys take 5/4 of the
bytes of 32-row groups, and a row that a policy keeps is rounded again. The error of a value is in units of
its row's largest magnitude, with `keys=channel` of its page's.

Where products are in bfloat16 (AVX-512), 4-bit keys per token meet queries rounded to 8 bits, each group
by its own scale, and values meet weights rounded to 8 bits, 256 keys by their largest; sums of products are
exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE, coded_fields
from pronghorn.methods.kvfmt import _codes
from pronghorn.types import Array, Codes, Field, Guarantee, Traits

BY_ROW = Codes(bits=4, group=64)
BY_CHANNEL = Codes(bits=4, group=0)


@dataclass(frozen=True)
class Int4:
    keys: str = "token"  # what a key's scale belongs to: "token" or "channel"

    traits = Traits(Guarantee.APPROXIMATE)
    bare = False  # the name alone is a weight format's
    open = "own"
    error = (1 + 2.0**-6) / 15

    def __post_init__(self) -> None:
        if self.keys not in ("token", "channel"):
            raise MethodError(f"int4: keys is 'token' or 'channel', not {self.keys!r}")

    @property
    def group(self) -> int:
        return 1 if self.keys == "token" else PAGE

    @property
    def codes(self) -> tuple[Codes, Codes]:
        return (BY_ROW if self.keys == "token" else BY_CHANNEL), BY_ROW

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return coded_fields(*self.codes, dim)

    def pack(self, k: Array, v: Array, ops: Any) -> dict[str, Array]:
        kc, vc = self.codes
        keys = _codes.pack_rows(k, kc, ops) if kc.group else _codes.pack_channels(k, kc, ops)
        return _codes.fields_of(keys, _codes.pack_rows(v, vc, ops), (kc, vc), ops)

    def unpack(self, fields: dict[str, Array], dim: int, ops: Any) -> tuple[Array, Array]:
        return _codes.unpack(fields, self.codes, dim, ops)
