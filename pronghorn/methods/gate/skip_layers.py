"""Skip layers: some layers are left out of the model (as depth pruning does; Men et al., 2024,
ShortGPT, arXiv 2403.03853, finds which ones a model misses least).

A skipped layer's weights are not loaded and it stores no KV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pronghorn.errors import MethodError
from pronghorn.types import Guarantee, Traits


@dataclass(frozen=True)
class SkipLayers:
    layers: tuple[int, ...] = ()  # layers left out, counted from 0; none by default

    traits = Traits(Guarantee.APPROXIMATE)

    def __post_init__(self) -> None:
        if any(i < 0 for i in self.layers) or len(set(self.layers)) < len(self.layers):
            raise MethodError(f"skip-layers: layers are numbers from 0, each once, not {list(self.layers)}")

    def skips(self, n_layers: int) -> Sequence[int]:
        past = [i for i in self.layers if i >= n_layers]
        if past:
            raise MethodError(
                f"skip-layers: layers are from 0 to {n_layers - 1} in this model, not {past[0]}"
            )
        if len(self.layers) == n_layers:
            raise MethodError(f"skip-layers: layers name all {n_layers} of the model; one must stay")
        return self.layers
