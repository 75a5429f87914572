"""StreamingLLM (Xiao et al., 2023, arXiv 2309.17453): attention sinks and a sliding window.

The first `sinks` rows and the last `window` rows stay, at contiguous positions, as section 3.2 has it:
text of any length runs at positions the model was trained for. Departures: rows are dropped in batches at
barriers and not at every token, so that up to `every` rows more are held (`prompt_every` inside the
prompt), and stored keys are turned on to their new positions instead of being rotated at each read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.kv.view import KVView
from pronghorn.methods._options import at_least
from pronghorn.methods.kv._grid import AtGrid
from pronghorn.types import Guarantee, KVPlan, Traits


@dataclass(frozen=True)
class StreamingLlm(AtGrid):
    sinks: int = 4  # rows kept from the start
    window: int = 1020  # rows kept from the end
    every: int = 64  # tokens between drops in the answer
    prompt_every: int = 2048  # tokens between drops inside the prompt

    traits = Traits(Guarantee.APPROXIMATE, rows="seq", drops=True, moves=True)

    def __post_init__(self) -> None:
        at_least("streaming-llm", self, sinks=0, window=1, every=1, prompt_every=1)

    def plan(self, view: KVView, taps: dict[str, NDArray[Any]]) -> KVPlan | None:
        if view.n <= self.sinks + self.window:
            return None
        row = np.arange(view.n)
        return view.keep_where((row < self.sinks) | (row >= view.n - self.window))
