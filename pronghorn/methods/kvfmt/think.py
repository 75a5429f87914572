"""ThinK (Xu et al., 2024, arXiv 2407.21018): keys without the channels that matter least; values stay whole.

A page of 16 rows drops the `prune` of its keys' channels that matter least, and has a bit for each channel
that is left. A channel counts |Q_c| |K_c|, as in the paper: K_c are its numbers in the page, Q_c those of the
last `window` queries of the prompt, the mean over the query heads that share a KV head of their lengths.
Departures: each page chooses for itself, where the paper has one choice for a whole prompt. Pages that were
sealed before the prompt's end (at 2,048 rows and multiples) and those of the answer go by |K_c| alone, as all
do with `window=0`: the former may be shared by texts that begin alike, and an answer keeps no queries. What
is kept is in bfloat16, values included; rows behind the last barrier have all channels. Rows that a policy
keeps on lose channels again, by their new page.

Scores of the 96 queries behind a prompt are off by 24 % of their length on the look-up model and 15 to 16 %
on the bundled one (`prune=0.4`); by |K_c| alone 26 and 15 to 17 %, with one choice for a whole prompt 27 and
16 to 18 %. Answers of the look-up model are as often right with 0.4; with more dropped, neither is better in
all tasks (of words of a copied span 98 % by queries and 93 % by keys alone with 0.5, 28 and 57 % with 0.6).

At 64 channels a page takes 83 % of bfloat16's bytes with `prune=0.4`, 77 % with 0.5, the bits included. The
error of a value is in units of the largest magnitude of its page, and as large: a dropped number is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE, coded_fields, n_kept
from pronghorn.kv.view import Floats, KVView, rounded
from pronghorn.methods.kvfmt import _beside, _codes
from pronghorn.types import Array, Codes, Field, Guarantee, Said, Traits


@dataclass(frozen=True)
class Think:
    prune: float = 0.4  # share of a page's channels of keys that it drops
    window: int = 32  # last queries of a prompt that weigh its channels; 0: keys alone do

    open = "own"
    group = PAGE
    error = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.prune < 1:
            raise MethodError(f"think: prune is at least 0 and less than 1, not {self.prune}")
        if self.window < 0:
            raise MethodError(f"think: window is 0 or above, not {self.window}")

    @property
    def traits(self) -> Traits:
        return Traits(Guarantee.APPROXIMATE, taps=(f"q.last{self.window}",) if self.window else ())

    @property
    def codes(self) -> tuple[Codes, Codes]:
        keys, values = (Codes(16, group=0, offset=False, kept=kept) for kept in (1 - self.prune, 1.0))
        return keys, values

    def fields(self, page: int, dim: int) -> tuple[Field, ...]:
        return coded_fields(*self.codes, dim)

    def look(self, view: KVView, taps: dict[str, Floats]) -> Said:
        length = np.linalg.norm(taps["q"], axis=2)  # (L, heads, dim)
        length = length.reshape(view.n_layers, view.n_kv, -1, length.shape[-1]).mean(axis=2)
        return Said(np.zeros((view.n_layers, view.n_kv, view.n)), rounded(length))

    def pack(self, k: Array, v: Array, ops: Any) -> dict[str, Array]:
        return self.pack_by(k, v, k, ops.xp.ones((k.shape[2],), dtype=k.dtype, device=k.device), ops)

    def pack_by(self, k: Array, v: Array, rows: Array, channels: Array, ops: Any) -> dict[str, Array]:
        dim = k.shape[2]
        kept = n_kept(self.codes[0], dim)
        by = ops.to(channels, str(k.dtype).removeprefix("torch."))
        most = ops.xp.max(by)
        by = ops.xp.where(most > 0, by / _beside.above_zero(most, ops), ops.xp.ones_like(by))
        keys, mask = _beside.keep_channels(k, _weights(k, ops) * by * by, kept, ops)
        fields = {"k": ops.to(keys, "bfloat16"), "v": ops.to(v, "bfloat16")}
        return {**fields, "kf": mask} if kept < dim else fields

    def unpack(self, fields: dict[str, Array], dim: int, ops: Any) -> tuple[Array, Array]:
        return _codes.unpack(fields, self.codes, dim, ops)


def _weights(k: Array, ops: Any) -> Array:
    """The squares of each channel's numbers k (n, page, dim), summed: (n, dim), in units of the page."""
    k = k / _beside.above_zero(_beside.largest(k, ops), ops)[..., None]
    return _beside.total(k * k, 1, ops)
