"""Types of the native extension (built from the C++ sources beside this file)."""

import numpy as np
import numpy.typing as npt

def isas() -> list[str]:
    """Instruction sets that this build has kernels for and this machine can run, worst first."""

def isa() -> str:
    """The instruction set in use: the best of `isas()`, or the one that PRONGHORN_ISA names.

    Raises `UnsupportedError` where PRONGHORN_ISA names a set that is unknown or cannot run here.
    """

def dot(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Inner product of two contiguous (n,) float32 arrays, accumulated in float32.

    Raises `ValueError` where the lengths differ, and `TypeError` for another dtype or layout.
    """
