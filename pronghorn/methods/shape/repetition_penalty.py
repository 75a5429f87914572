"""Repetition penalty (CTRL, Keskar et al., 2019, arXiv 1909.05858, section 4.1).

Tokens that occur in the prompt or the answer are made less likely: a positive logit is divided by the
penalty, a negative one multiplied (the usual repair of the paper's division, which would favour them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.types import Guarantee, Ints, Traits


@dataclass(frozen=True)
class RepetitionPenalty:
    penalty: float = 1.1  # above 1 discourages, below 1 encourages

    traits = Traits(Guarantee.EXACT)
    order: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not (self.penalty > 0 and math.isfinite(self.penalty)):
            raise MethodError(f"repetition-penalty: penalty is above 0, not {self.penalty}")

    def shape(self, logits: NDArray[np.float64], path: Ints, n_prompt: int) -> NDArray[np.float64]:
        x = logits[path]  # a token that occurs twice is written twice, with the same value
        with np.errstate(over="ignore"):  # the target says what is wrong with an infinite logit
            logits[path] = np.where(x > 0, x / self.penalty, x * self.penalty)
        return logits
