"""Every step has the same number of rows (DeepSpeed-FastGen, Holmes et al., 2024, arXiv
2401.08671, Dynamic SplitFuse).

Each step takes a row of every answer under way and fills up with prompts to exactly N rows: long prompts are
split over steps, short ones fused. Rows per second grow ever more slowly with the rows of a step, so steps of
equal size are the fastest way to share out the work. N is where they all but stop growing, by the cost model
of this machine.

Departures: memory, order and preemption are as in `sarathi` (the paper takes requests in turn, and those
that have begun keep their memory).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pronghorn.errors import MethodError
from pronghorn.methods.sched import _queue
from pronghorn.seq import Seq
from pronghorn.slots import Room, StepPlan
from pronghorn.types import Guarantee, Traits


@dataclass(frozen=True)
class Splitfuse:
    rows: int = 0  # rows of one step; 0: the fewest that run nearly as fast as any, 64 to 2048
    max_running: int = 64  # sequences under way at once
    reserve: int = 64  # KV rows of its answer that must be free for a sequence to start

    traits = Traits(Guarantee.EXACT)

    def __post_init__(self) -> None:
        _queue.positive(self, "max_running", "reserve")
        if self.rows < 0:
            raise MethodError(f"splitfuse: rows is 0 or above, not {self.rows}")

    def plan(self, waiting: Sequence[Seq], running: Sequence[Seq], room: Room) -> StepPlan:
        step = _queue.keep(running, room.kv_rows)
        slots = self.max_running - sum(s.branches for s in step.stay)
        _queue.admit(step, waiting, slots, self.reserve)
        size = self.rows or max(64, room.cost.saturation(2048))
        _queue.fill(step, min(size, room.rows))
        return step.plan()
