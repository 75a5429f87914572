"""Steps without drafts, run to learn what they take: nobody else would find out."""

from __future__ import annotations

from pronghorn.slots import DraftRoom

FIRST = 4  # steps of a size
SHARE = 0.005  # of further steps


class Plain:
    """Steps so far."""

    def __init__(self) -> None:
        self._since = 0  # steps with drafts since the last without
        self._seen: dict[int, int] = {}  # steps without, by size

    def due(self, room: DraftRoom, n_seqs: int) -> bool:
        """Whether this step is one: of the first few of a size, later of a share of all. Steps that run
        prompts are no measure."""
        self._since += 1
        size = room.base.bit_length()
        new = self._seen.get(size, 0) < FIRST and room.cost.seen(room.base) < FIRST
        if room.base > n_seqs or not (new or self._since * SHARE >= 1):
            return False
        self._since, self._seen[size] = 0, self._seen.get(size, 0) + 1
        return True
