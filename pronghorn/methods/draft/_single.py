"""What many drafters do alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Accept, Draft


class Fixed:
    """A drafter that learns nothing from what became of its drafts."""

    def observe(
        self, seqs: Sequence[Seq], drafts: Sequence[Draft], accepts: Sequence[Accept],
        taps: Sequence[dict[str, NDArray[Any]]],
    ) -> None:  # fmt: skip
        pass


class Single(ABC):
    """A drafter that drafts for each sequence by itself."""

    def propose(self, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom) -> list[Draft]:
        return [
            self._one(s, depth, room) if depth > 0 else Draft.empty()
            for s, depth in zip(seqs, k, strict=True)
        ]  # fmt: skip

    @abstractmethod
    def _one(self, seq: Seq, depth: int, room: DraftRoom) -> Draft:
        """A draft no deeper than `depth`, which is 1 or more."""
