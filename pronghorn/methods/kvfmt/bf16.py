"""Keys and values in bfloat16: 2 bytes a value, 8 significant bits.

What a bfloat16 model stores anyway; for a float32 model half the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from pronghorn.nulls import ExactKV
from pronghorn.types import Guarantee, Traits


@dataclass(frozen=True)
class Bf16(ExactKV):
    traits = Traits(Guarantee.APPROXIMATE)
    error = 2.0**-8  # of a row's largest magnitude
    open = "bfloat16"
