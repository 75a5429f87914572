"""Weights in 4 bits at the quantiles of a normal distribution (QLoRA, Dettmers et al., 2023, section 3, arXiv
2305.14314).

Two departures. Levels are NF4's times 127, rounded to whole numbers, so that they multiply as int8 codes do:
no level moves by more than half of 1/127. The scale, float16, is found by minimising the squared error
instead of taken from the largest magnitude and is not quantized a second time: 4.25 bits a weight with groups
of 64.
"""

from __future__ import annotations

from dataclasses import dataclass

from pronghorn.methods.weight._coded import Coded, one_of
from pronghorn.ops.codes import Grid

# The paper's levels, each the middle of two neighbouring quantiles of N(0, 1), 8 below and 7 above 0, scaled
# to [-1, 1]; here in units of 1/127.
LEVELS = (-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127)


@dataclass(frozen=True)
class Nf4(Coded):
    group: int = 64  # inputs that share a scale: 32, 64 or 128
    activations: int = 8  # bits to which a product's inputs are rounded: 8 or 16
    only: str = ""  # globs on tensor names, joined by +; empty: every matrix

    error = 0.165  # of a row's largest magnitude

    def __post_init__(self) -> None:
        one_of("nf4: group", self.group, (32, 64, 128))
        one_of("nf4: activations", self.activations, (8, 16))

    @property
    def grid(self) -> Grid:
        return Grid(4, self.group, table=LEVELS, activations=self.activations)
