"""Weights in 8 bits: one scale for each output channel, or for each group of inputs.

The vector-wise scheme of LLM.int8 (Dettmers et al., 2022, arXiv 2208.07339) without its outlier
decomposition, and with scales found by minimising the squared error (`quantize.fit`) instead of the largest
magnitude / 127. The embedding is stored so too, its rows being the channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from pronghorn.methods.weight._coded import Coded, one_of
from pronghorn.ops.codes import Grid


@dataclass(frozen=True)
class Int8(Coded):
    group: int = 0  # inputs that share a scale: 32, 64 or 128; 0: all of a row
    activations: int = 8  # bits to which a product's inputs are rounded: 8 or 16
    only: str = ""  # globs on tensor names, joined by +; empty: every matrix

    error = 0.0165  # of a row's largest magnitude

    def __post_init__(self) -> None:
        one_of("int8: group", self.group, (0, 32, 64, 128))
        one_of("int8: activations", self.activations, (8, 16))

    @property
    def grid(self) -> Grid:
        scale = "float16" if self.group else "float32"
        return Grid(8, self.group, scale=scale, activations=self.activations)
