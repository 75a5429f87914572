"""Sarathi-Serve: stall-free batches under a token budget (Agrawal et al., OSDI 2024, arXiv 2403.02310,
section 4, algorithm 3).

Every step first gives each answer under way its row, then the prompts that have begun, then new ones, as
many rows as keep the step within `tbt` seconds, the target for the time between two tokens. The cost model
of this machine says how many those are, for the contexts at hand (section 4.3 profiles one budget ahead).
Drafts get what is left of the time.

Departures: order is by priority, then deadline (earliest first), then arrival. Memory is handed out by
what is held; when it runs short the last in that order gives up its KV, and a waiting request of higher
priority may take a lower one's place (`_queue.py`). No more sequences run together than have their tokens
within the target. A stream of requests with deadlines may delay those without for as long as it lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pronghorn.methods.sched import _queue
from pronghorn.seq import Seq
from pronghorn.slots import Room, StepPlan
from pronghorn.types import Guarantee, Traits


@dataclass(frozen=True)
class Sarathi:
    tbt: float = 0.05  # seconds of a step, the target for the time between tokens
    alone: float = 0.25  # seconds of a step while no answer is under way that it could delay
    rows: int = 2048  # rows of one step at most, drafts not counted
    least: int = 16  # prompt rows of a step and sequences under way that the target never goes below
    max_running: int = 64  # sequences under way at once
    reserve: int = 64  # KV rows of its answer that must be free for a sequence to start

    traits = Traits(Guarantee.EXACT)

    def __post_init__(self) -> None:
        _queue.positive(self, "tbt", "alone", "rows", "least", "max_running", "reserve")

    def plan(self, waiting: Sequence[Seq], running: Sequence[Seq], room: Room) -> StepPlan:
        step = _queue.keep(running, room.kv_rows)
        slots = _queue.slots(step.stay, room.cost, self.tbt, self.least, self.max_running)
        _queue.admit(step, waiting, slots, self.reserve)
        cap = min(self.rows, room.rows)
        for seq in step.stay:
            if seq.decoding and cap:
                cap -= step.take(seq, 1)
        seconds = self.tbt if step.rows else self.alone
        least = self.least
        for seq in [*step.stay, *step.admit]:
            if not seq.decoding and cap:
                fit = room.cost.rows_within(seconds, step.n, step.read, seq.kv.length)
                n = step.take(seq, min(cap, max(fit, least)))
                cap, least = cap - n, max(0, least - n)
        return step.plan(seconds)
