"""Weights in 2 bits: as `int4` with levels -2..1. A group of 32 takes 2.5 bits a weight, of 128 2.125.

Asymmetric codes are worth their bits here (4 levels where the group is). No rounding keeps a small model
whole in 2 bits; `pronghorn quantize` says what it costs.
"""

from __future__ import annotations

from dataclasses import dataclass

from pronghorn.methods.weight._coded import Grouped


@dataclass(frozen=True)
class Int2(Grouped):
    group: int = 32  # inputs that share a scale: 32, 64 or 128
    symmetric: bool = True  # false: an offset for each group too, 0.5 bits more a weight at 32
    activations: int = 8  # bits to which a product's inputs are rounded: 8 or 16
    only: str = ""  # globs on tensor names, joined by +; empty: every matrix

    bits = 2
    error = 0.65  # of a row's largest magnitude
