"""The quantizers by name, behind one signature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pronghorn.ops.codes import Codes, Grid
from pronghorn.quantize.awq import awq
from pronghorn.quantize.finequant import finequant
from pronghorn.quantize.fit import fit
from pronghorn.quantize.gptq import gptq
from pronghorn.quantize.hqq import hqq
from pronghorn.quantize.seen import Seen

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Quantizer:
    """codes: of a matrix (n_out, n_in) on a grid, given what was seen of its inputs. text: it looks at
    text; folds: it scales inputs first; shares: matrices of one input cost less together."""

    codes: Callable[[Floats, Grid, Seen], Codes]
    text: bool = False
    folds: bool = False
    shares: bool = False


QUANTIZERS = {
    "rtn": Quantizer(lambda w, grid, seen: fit(w, grid)),
    "finequant": Quantizer(lambda w, grid, seen: finequant(w, grid)),
    "hqq": Quantizer(lambda w, grid, seen: hqq(w, grid)),
    "gptq": Quantizer(gptq, text=True, shares=True),
    "awq": Quantizer(awq, text=True, folds=True),
    "awq-gptq": Quantizer(gptq, text=True, folds=True, shares=True),
}
