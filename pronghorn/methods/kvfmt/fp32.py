"""Keys and values in float32: 4 bytes a value.

Never less accurate than the runner's own dtype, but in a bfloat16 model not the same numbers, hence not
an exact method there.
"""

from __future__ import annotations

from dataclasses import dataclass

from pronghorn.nulls import ExactKV
from pronghorn.types import Guarantee, Traits


@dataclass(frozen=True)
class Fp32(ExactKV):
    traits = Traits(Guarantee.APPROXIMATE)
    error = 2.0**-23  # of a row's largest magnitude
    open = "float32"
