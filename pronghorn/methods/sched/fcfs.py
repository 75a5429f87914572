"""First come, first served, with chunked prompts (as Sarathi-Serve, Agrawal et al., 2024, arXiv
2403.02310, mixes them).

Every step first gives each answer under way its row, then fills up with the prompts' rows in order of
arrival, `chunk` rows of each at most, so that a long prompt delays nobody's next token by much. A waiting
sequence starts when the rows that it may come to need are free; none overtakes another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pronghorn.errors import MethodError
from pronghorn.seq import Seq
from pronghorn.slots import Room, StepPlan
from pronghorn.types import Guarantee, Traits


@dataclass(frozen=True)
class Fcfs:
    rows: int = 512  # rows of one step at most, drafts not counted
    chunk: int = 256  # rows of one prompt in one step at most
    max_running: int = 32  # sequences under way at once

    traits = Traits(Guarantee.EXACT)

    def __post_init__(self) -> None:
        for name in ("rows", "chunk", "max_running"):
            if getattr(self, name) < 1:
                raise MethodError(f"fcfs: {name} is 1 or above, not {getattr(self, name)}")

    def plan(self, waiting: Sequence[Seq], running: Sequence[Seq], room: Room) -> StepPlan:
        admit = self._admit(waiting, running, room.kv_rows)
        left = max(1, min(self.rows, room.rows))
        rows: list[tuple[Seq, int]] = []
        for seq in running:
            if seq.decoding and left:
                rows.append((seq, 1))
                left -= 1
        for seq in [*(s for s in running if not s.decoding), *admit]:
            n = min(self.chunk, left, len(seq.tokens) - seq.kv.length)
            if n:
                rows.append((seq, n))
                left -= n
        return StepPlan(admit, tuple(rows))

    def _admit(self, waiting: Sequence[Seq], running: Sequence[Seq], free: int) -> tuple[Seq, ...]:
        admit: list[Seq] = []
        free -= sum(s.need - s.held for s in running)  # what they may still come to hold
        for seq in waiting[: max(0, self.max_running - len(running))]:
            free -= seq.need
            if free < 0 and (running or admit):  # alone it starts: there is nothing to wait for
                break
            admit.append(seq)
        return tuple(admit)
