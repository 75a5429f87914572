"""Draft & Verify (Zhang et al., 2024, arXiv 2309.08168): the model drafts for itself with sublayers left out.

Weights are shared and nothing more is stored: a draft attends to the rows of the whole model, which has run
all tokens before it, and to its own rows, which go when it ends. So accepted tokens cost no repair.

Which sublayers a model misses least is found by `pronghorn calibrate skip-set`; without a list every second
layer is left out. A chain ends with a token less likely than a threshold, which moves so that `accept` of the
drafted tokens stand: the paper's rule, with its constants (step 0.01, weights 0.5 and 0.9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.methods.draft._companion import Style, chains, check, companion
from pronghorn.opening import parse
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Accept, Draft, Guarantee, Traits

STEP, KEEP_SURE, KEEP_RATE = 0.01, 0.5, 0.9


@dataclass
class _Threshold:
    """sure: the threshold; rate: of drafted tokens that stood, a running mean."""

    sure: float
    rate: float

    def move(self, stood: float, accept: float) -> None:
        self.rate = KEEP_RATE * self.rate + (1 - KEEP_RATE) * stood
        aim = self.sure + (STEP if self.rate <= accept else -STEP)
        self.sure = min(max(KEEP_SURE * self.sure + (1 - KEEP_SURE) * aim, 0.0), 1.0)


@dataclass(frozen=True)
class SelfSkip:
    layers: str = "odd"  # left out: 3 a layer, 3a its attention, 3m its feed-forward, joined by +
    length: int = 8  # drafted tokens at most
    sure: float = 0.6  # a chain ends with a token less likely than this, to begin with
    accept: float = 0.9  # share of drafted tokens that should stand; 0: the threshold stays
    sample: bool = False  # draw tokens at random and hand their distributions on, for verifiers that reject

    def __post_init__(self) -> None:
        check("self-skip", self.length, sure=self.sure)
        if not 0 <= self.accept < 1:
            raise MethodError(f"self-skip: accept is from 0 up to 1, not {self.accept:g}")
        if not self.layers or ":" in self.layers:
            raise MethodError("self-skip: layers are written like 3+5a+7m")
        parse(self._model)

    @property
    def _model(self) -> str:
        return f"self:skip={self.layers}"

    @property
    def traits(self) -> Traits:
        return Traits(Guarantee.EXACT, models=(self._model,))

    @cached_property
    def _threshold(self) -> _Threshold:
        return _Threshold(self.sure, self.accept)

    def propose(self, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom) -> list[Draft]:
        style = Style(self.length, sure=self._threshold.sure, sample=self.sample)
        return chains(companion(room, self._model), seqs, k, room, style)

    def observe(
        self, seqs: Sequence[Seq], drafts: Sequence[Draft], accepts: Sequence[Accept],
        taps: Sequence[dict[str, NDArray[Any]]],
    ) -> None:  # fmt: skip
        for draft, accept in zip(drafts, accepts, strict=True):
            if draft.n and self.accept:
                self._threshold.move(len(accept.path) / draft.n, self.accept)
