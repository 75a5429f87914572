"""Weights in 3 bits: as `int4` with levels -4..3. A group of 32 takes 3.5 bits a weight, of 128 3.125.

With rounding alone this costs a small model much; the quantizers of `pronghorn quantize` win part of it back.
"""

from __future__ import annotations

from dataclasses import dataclass

from pronghorn.methods.weight._coded import Grouped


@dataclass(frozen=True)
class Int3(Grouped):
    group: int = 32  # inputs that share a scale: 32, 64 or 128
    symmetric: bool = True  # false: an offset for each group too, 0.5 bits more a weight at 32
    activations: int = 8  # bits to which a product's inputs are rounded: 8 or 16
    only: str = ""  # globs on tensor names, joined by +; empty: every matrix

    bits = 3
    error = 0.425  # of a row's largest magnitude
