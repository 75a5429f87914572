"""EasySpec (Wu et al., 2025, arXiv 2502.02493): a drafter whose attention sublayers run side by side.

In each run of `block` layers all attention sublayers take the residual stream as it enters the first of
them; the feed-forwards then follow in order. Such drafts are a little off, and so are the rows that they
leave; accepted tokens are run again, exactly, before the next draft: the paper's calibration. Where the model
drafts for itself there is nothing to repair, since a draft reads the rows of the answering model.

The gain of the paper is in devices that work at the same time. On one device the same weights are read, so
only fewer waits between threads could be gained; this is here to show what the drafts cost and are worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pronghorn.errors import MethodError
from pronghorn.methods.draft._companion import Style, chains, check, companion
from pronghorn.methods.draft._single import Fixed
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Draft, Guarantee, Traits


@dataclass(frozen=True)
class Easyspec(Fixed):
    model: str = "self"  # the model that drafts
    block: int = 2  # layers whose attention runs side by side; 1: the model as it is
    length: int = 5  # drafted tokens at most
    stop: float = 0.7  # end a chain once the chance of a wrong token exceeds this; 1: never
    sample: bool = False  # draw tokens at random and hand their distributions on, for verifiers that reject

    def __post_init__(self) -> None:
        check("easyspec", self.length, self.stop)
        if not 1 <= self.block <= 64:
            raise MethodError(f"easyspec: block is from 1 to 64, not {self.block}")

    @property
    def _model(self) -> str:
        return f"{self.model}:block={self.block}"

    @property
    def traits(self) -> Traits:
        return Traits(Guarantee.EXACT, models=(self._model,))

    def propose(self, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom) -> list[Draft]:
        style = Style(self.length, self.stop, sample=self.sample)
        return chains(companion(room, self._model), seqs, k, room, style)
