"""ThinK (Xu et al., 2024, arXiv 2407.21018): keys without the channels that matter least; values stay whole.

A page of 16 rows drops the `prune` of its keys' channels whose numbers have the least squares, and has a bit
for each channel that is left. Departures: the paper weighs a channel by its queries too, |Q_c| |K_c| over
the last 32 of the prompt; a page is packed by its keys alone, so that what it holds does not depend on what
is asked, and may be shared by texts that begin alike. In turn each page chooses for itself, where the paper
has one choice for a whole prompt. On the two small models at hand scores are then off by as much as with the
paper's choice or less (their error's length at 0.4: 16 against 16 %, 17 against 23 %; channels by lot: 49 to
53 %). What is kept is in bfloat16, values included; rows behind the last barrier have all channels. Rows
that a policy keeps on lose channels again, by their new page.

At 64 channels a page takes 83 % of bfloat16's bytes with `prune=0.4`, 77 % with 0.5, the bits included. The
error of a value is in units of the largest magnitude of its page, and as large: a dropped number is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE, coded_fields, n_kept
from pronghorn.methods.kvfmt import _beside, _codes
from pronghorn.types import Array, Codes, Field, Guarantee, Traits


@dataclass(frozen=True)
class Think:
    prune: float = 0.4  # share of a page's channels of keys that it drops

    traits = Traits(Guarantee.APPROXIMATE)
    open = "own"
    group = PAGE
    error = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.prune < 1:
            raise MethodError(f"think: prune is at least 0 and less than 1, not {self.prune}")

    @property
    def codes(self) -> tuple[Codes, Codes]:
        keys, values = (Codes(16, group=0, offset=False, kept=kept) for kept in (1 - self.prune, 1.0))
        return keys, values

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return coded_fields(*self.codes, dim)

    def pack(self, k: Array, v: Array, ops: Any) -> dict[str, Array]:
        dim = k.shape[2]
        kept = n_kept(self.codes[0], dim)
        keys, mask = _beside.keep_channels(k, _weights(k, ops), kept, ops)
        fields = {"k": ops.to(keys, "bfloat16"), "v": ops.to(v, "bfloat16")}
        return {**fields, "kf": mask} if kept < dim else fields

    def unpack(self, fields: dict[str, Array], dim: int, ops: Any) -> tuple[Array, Array]:
        return _codes.unpack(fields, self.codes, dim, ops)


def _weights(k: Array, ops: Any) -> Array:
    """The squares of each channel's numbers k (n, page, dim), summed: (n, dim), in units of the page."""
    k = k / _beside.above_zero(_beside.largest(k, ops), ops)[..., None]
    return _beside.total(k * k, 1, ops)
