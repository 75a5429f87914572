"""Stored rows that no query chose lately lie on a disk.

Papers of selectors that offload (Double Sparsity, Yang et al., 2024, arXiv 2408.07092; SentenceKV, Zhu et
al., 2025, arXiv 2504.00970; A2ATS, He et al., 2025, arXiv 2502.12665) keep an index on the fast device and
fetch chosen rows from a slow one. Here the fast one is memory and the slow one a file: sealed pages of any
format lie in it, a selector's index and rows that are not sealed stay in memory, and of the pages those
that were chosen last, `ram_gb` of them: what leaves is what was read longest ago. Any selector will do, and
the same tokens come as without it.

What a layer's rows chose and memory lacks is asked of the disk all together, as soon as it is known, and
attention waits for it. Departures: nothing is fetched before it is chosen (the papers guess the next layer's
while one is computed). What was chosen in the last step is what is in memory, so it does not tell what will
be missing. Every row of a prompt chooses, so a prompt's steps read more than an answer's, and
the budget is kept between steps, not inside them. `--kv-gb` counts rows wherever they lie. A folder in
memory (tmpfs) saves nothing. Without a selector every page is read in every step: then this only costs
time.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pronghorn.errors import MethodError
from pronghorn.kv.paged import Pages as Paged
from pronghorn.nulls import AllResident
from pronghorn.slots import Longs

if TYPE_CHECKING:
    from pronghorn.kv.store import Store


@dataclass(frozen=True)
class Pages(AllResident):
    folder: str = ""  # of the file, on a disk with room for all stored rows; "": where temporary files go
    ram_gb: float = 1.0  # GiB of sealed rows that stay in memory; their index comes on top

    def __post_init__(self) -> None:
        if not 0 < self.ram_gb < 1 << 20:
            raise MethodError(f"pages: ram_gb is above 0, in GiB, not {self.ram_gb}")

    def victims(self, n: int, held: Longs, last: Longs) -> Longs:
        if n >= len(held):
            return held
        return held[np.argpartition(last, n)[:n]]

    def pages(self, store: Store) -> Paged:
        folder = self.folder or tempfile.gettempdir()
        try:
            return Paged(store, self, folder, int(self.ram_gb * (1 << 30)))
        except OSError as error:
            raise MethodError(
                f"pages: cannot write to {folder!r} ({error.strerror or error}): name another folder"
            ) from None
