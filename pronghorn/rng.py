"""The counter-based random stream.

Every random number is keyed by (seed, branch, position, purpose), so a seed gives the same text whatever
the batch, the drafter or the order in which positions are visited. The generator is Philox-4x64 (Salmon
et al., 2011, "Parallel random numbers: as easy as 1, 2, 3") as NumPy implements it.
"""

from __future__ import annotations

import numpy as np

DRAW = 0  # purpose of the target's own draw; methods use 1 and above


def uniform(seed: int, branch: int, pos: int, purpose: int) -> float:
    """A number in [0, 1) with 53 random bits."""
    mask = (1 << 64) - 1
    seed, pos = int(seed), int(pos)
    # as uint64: a list with a number of 2**63 or more would become float64 and lose its low bits
    counter = np.array([0, pos & mask, purpose, branch], np.uint64)
    bits = np.random.Philox(counter=counter, key=np.array([seed & mask, 0], np.uint64))
    return float(int(bits.random_raw()) >> 11) * 2.0**-53
