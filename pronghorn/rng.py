"""The counter-based random stream.

Every random number is keyed by (seed, branch, position, purpose), so a seed gives the same text whatever
the batch, the drafter or the order in which positions are visited. The generator is Philox-4x64 (Salmon et
al., 2011, "Parallel random numbers: as easy as 1, 2, 3") as NumPy implements it; single numbers come from
native code that does the same.

No number may serve twice: what decides whether a drafted token stands must know nothing of how it was
drafted. So whoever takes numbers has purposes of his own: 0 the target's draw, from 1 on the verifiers',
from `DRAFT` on the drafters', from `KEEP` on the policies'. The position is that of the token which the
number helps to choose, and policies number blocks of rows. A token is chosen in one round only, and what
rounds before drafted for its position and threw away was never looked at, so rounds may draft with the
same numbers.
"""

from __future__ import annotations

import numpy as np

from pronghorn.ops.cpu import _native

MASK = (1 << 64) - 1
DRAW = 0  # purpose of the target's own draw; methods use 1 and above
DRAFT = 1 << 32  # purposes of drafters
KEEP = 2 << 32  # purposes of policies


def uniform(seed: int, branch: int, pos: int, purpose: int) -> float:
    """A number in [0, 1) with 53 random bits."""
    return _native.uniform(int(seed) & MASK, branch, int(pos) & MASK, purpose)


def stream(seed: int, branch: int, pos: int, purpose: int) -> np.random.Generator:
    """As many numbers as are asked for. Streams of different keys never overlap; the first number of a stream
    is made of the bits of `uniform` with its key, so a purpose is used for one or the other."""
    return np.random.Generator(_philox(seed, branch, pos, purpose))


def _philox(seed: int, branch: int, pos: int, purpose: int) -> np.random.Philox:
    # as uint64: a list with a number of 2**63 or more would become float64 and lose its low bits
    counter = np.array([0, int(pos) & MASK, purpose, branch], np.uint64)
    return np.random.Philox(counter=counter, key=np.array([int(seed) & MASK, 0], np.uint64))
