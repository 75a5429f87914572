"""Weights in 4 bits: groups of inputs share a float16 scale, found by minimising the squared error.

The usual format of group-wise rounding (for instance FineQuant, Kim et al., 2023, arXiv 2308.09723), with
two differences: the scale is searched for and then solved for (`quantize.fit`) instead of taken from the
largest magnitude, and it may be negative, so that the lopsided levels -8..7 reach further on the side where
the group does. A group of 32 takes 4.5 bits a weight, of 128 4.125.
"""

from __future__ import annotations

from dataclasses import dataclass

from pronghorn.methods.weight._coded import Grouped


@dataclass(frozen=True)
class Int4(Grouped):
    group: int = 32  # inputs that share a scale: 32, 64 or 128
    symmetric: bool = True  # false: an offset for each group too, 0.5 bits more a weight at 32
    activations: int = 8  # bits to which a product's inputs are rounded: 8 or 16
    only: str = ""  # globs on tensor names, joined by +; empty: every matrix

    bits = 4
    error = 0.25  # of a row's largest magnitude
