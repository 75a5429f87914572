"""Logit bias, as the OpenAI API defines it: a number added to the logits of chosen tokens.

-100 in effect forbids a token, 100 in effect forces it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.types import Guarantee, Ints, Traits


@dataclass(frozen=True)
class LogitBias:
    bias: str = ""  # token:number pairs, as in "17:-100,42:5"

    traits = Traits(Guarantee.EXACT)
    order: ClassVar[int] = 0

    def __post_init__(self) -> None:
        self._pairs  # noqa: B018 - reads the text once, so that a mistake shows at start-up

    @cached_property
    def _pairs(self) -> tuple[Ints, NDArray[np.float64]]:
        """Token ids and what is added to each."""
        found: dict[int, float] = {}
        for pair in filter(None, self.bias.split(",")):
            token, colon, number = pair.partition(":")
            try:
                key, value = int(token), float(number)
            except ValueError:
                key, value = -1, 0.0
            if not colon or key < 0 or key >= 1 << 31 or key in found or not -100 <= value <= 100:
                raise MethodError(
                    "logit-bias: bias is a list of token:number with each token once and numbers from "
                    f'-100 to 100, as in "17:-100,42:5"; {pair!r} is not'
                )
            found[key] = value
        return np.array(list(found), np.int32), np.array(list(found.values()), np.float64)

    def shape(self, logits: NDArray[np.float64], path: Ints, n_prompt: int) -> NDArray[np.float64]:
        token, value = self._pairs
        if len(token) and token.max() >= len(logits):
            raise MethodError(
                f"logit-bias: bias names token {token.max()}, but the model has {len(logits)} tokens"
            )
        logits[token] += value
        return logits
