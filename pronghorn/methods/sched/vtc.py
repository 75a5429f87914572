"""Virtual token counters: users share the machine by the tokens they are served (Sheng et al., OSDI 2024,
arXiv 2401.00588, section 4, algorithm 2).

Each user has a counter: `prompt` for every prompt token when a request starts, `answer` for every new token.
The next to start is a request of the user with the smallest counter. A user who comes back with nothing
waiting is lifted to the smallest counter among those who wait (to that of the last one who did, when nobody
does), so that nobody saves up a claim by staying away. Priorities stay above fairness.

Departures. The paper never preempts and gives every running request a token in every step; a newcomer then
waits for a place, and gets its tokens as slowly as a full batch. Here, while several users have work,

- a user takes at most an equal part of the places while another one's request waits, and the youngest
  sequences of one that holds more of the places or the KV are preempted for a request of one that holds less;
- a step lasts at most `stretch` times what the work of the least demanding user alone would take, drafts
  included. First each user gets an equal part of its rows, the least demanding first, and all that one asks
  for if the step is as short for its sake; what is left goes in the order of the counters. Of one user's
  answers those that waited longest go first. Steps of many rows take time in proportion to them, so the
  others lose company, not tokens.

Time, memory and preemption are otherwise as in `sarathi`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from pronghorn.cost import StepCost, reads
from pronghorn.methods.sched import _queue
from pronghorn.methods.sched._users import Ledger
from pronghorn.seq import Seq
from pronghorn.slots import Room, StepPlan
from pronghorn.types import Guarantee, Traits


@dataclass(frozen=True)
class Vtc:
    tbt: float = 0.05  # seconds of a step, the target for the time between tokens
    alone: float = 0.25  # seconds of a step while no answer is under way that it could delay
    stretch: float = 1.25  # times what the least demanding user's work takes alone that a step may last
    rows: int = 2048  # rows of one step at most, drafts not counted
    least: int = 16  # rows of a step and sequences under way that the target never goes below
    max_running: int = 64  # sequences under way at once
    reserve: int = 64  # KV rows of its answer that must be free for a sequence to start
    prompt: float = 1.0  # what a prompt token is charged
    answer: float = 2.0  # what a new token is charged

    traits = Traits(Guarantee.EXACT)

    def __post_init__(self) -> None:
        _queue.positive(self, "tbt", "alone", "stretch", "rows", "least", "max_running", "reserve")
        _queue.positive(self, "prompt", "answer")

    @cached_property
    def _ledger(self) -> Ledger:
        return Ledger(self.prompt, self.answer)

    def plan(self, waiting: Sequence[Seq], running: Sequence[Seq], room: Room) -> StepPlan:
        ledger = self._ledger
        ledger.settle(waiting, running)
        step = _queue.keep(running, room.kv_rows, lambda s: (-s.request.priority, ledger.of(s), s.arrival))
        if waiting and not step.preempt:
            slots = _queue.slots(step.stay, room.cost, self.tbt, self.least, self.max_running)
            self._admit(step, waiting, _queue.Places(step, slots, self.reserve))
        plan = step.plan(self._fill(step, room))
        ledger.close([s for s in waiting if s not in step.admit] if step.admit else waiting, plan.rows)
        return plan

    # ------------------------------------------------------------------ who starts

    def _admit(self, step: _queue.Step, waiting: Sequence[Seq], places: _queue.Places) -> None:
        users = {s.request.user for s in [*waiting, *step.stay]}
        slots = -(-(places.slots + sum(s.branches for s in step.stay)) // len(users))
        rows = (step.free + sum(s.held for s in step.stay)) // len(users)
        held = _Held(step, self.reserve, slots, rows)
        if not places.open and not held.over():
            least = min(s.request.priority for s in step.stay)
            waiting = [s for s in waiting if s.request.priority > least]  # the others could not start
        queues: dict[str, list[Seq]] = {}  # of each user, the first at the end
        for seq in sorted(waiting, key=_queue.turn, reverse=True):
            queues.setdefault(seq.request.user, []).append(seq)
        while queues:
            user = min(queues, key=lambda u: self._next(queues[u][-1], held.slots[u]))
            seq = queues[user][-1]
            rivals = [q[-1].request.priority for u, q in queues.items() if u != user]
            if seq.request.priority in rivals and held.slots[user] and not held.has_part(seq):
                del queues[user]
                continue
            if not (places.fits(seq) or places.make_way(seq, held.victims(seq))):
                return
            places.start(seq)
            self._ledger.start(seq)
            queues[user].pop()
            if not queues[user]:
                del queues[user]
            held = _Held(step, self.reserve, slots, rows)

    def _next(self, seq: Seq, held: int) -> tuple[float, float, int, float]:
        return -seq.request.priority, self._ledger.of(seq), held, seq.arrival

    # ------------------------------------------------------------------ who gets rows

    def _fill(self, step: _queue.Step, room: Room) -> float:
        """Returns the seconds that the step may last."""
        cost, cap = room.cost, min(self.rows, room.rows)
        groups: dict[tuple[float, float, str], list[Seq]] = {}
        for seq in [*step.stay, *step.admit]:
            key = -seq.request.priority, self._ledger.of(seq), seq.request.user
            groups.setdefault(key, []).append(seq)
        work = [groups[key] for key in sorted(groups)]
        for seqs in work:
            seqs.sort(key=lambda s: (not s.decoding, self._ledger.ran[s.id] if s.decoding else 0))
        target = self.tbt if any(s.decoding for s in step.stay) else self.alone
        demand = [_alone(seqs, cost, cap) for seqs in work]
        fair = self.stretch * min(demand) if len(work) > 1 else math.inf
        limit = _Limit(cost, min(target, fair), fair, self.least)
        mean = sum(s.kv.length for s in step.stay) // max(1, len(step.stay))
        part = max(1, limit.prompt(0, 0, mean) // max(1, len(work)))
        for seconds, i in sorted(zip(demand, range(len(work)), strict=True)):
            whole = fair < target and seconds == min(demand)  # what bounds the step has all its work in it
            cap -= limit.serve(step, work[i], cap if whole else min(part, cap))
        for seqs in work:
            cap -= limit.serve(step, seqs, cap)
        return min(target, fair)


@dataclass(frozen=True)
class _Limit:
    """How long a step may last. Prompts keep it within `seconds` but for the first `least` rows, answers
    within `fair` only."""

    cost: StepCost
    seconds: float
    fair: float
    least: int

    def prompt(self, n: int, read: int, context: int) -> int:
        """Rows of a prompt that may join a step of n."""
        fit = self.cost.rows_within(self.seconds, n, read, context)
        if fit >= self.least - n:
            return fit
        return min(self.least - n, self.cost.rows_within(self.fair, n, read, context))

    def serve(self, step: _queue.Step, seqs: Sequence[Seq], cap: int) -> int:
        """Give rows to these, the step's first row in any case; returns how many."""
        given = 0
        for seq in seqs:
            had = step.rows[seq.id][1] if seq.id in step.rows else 0
            if given >= cap or had == len(seq.tokens) - seq.kv.length:
                continue
            at = step.n, step.read, seq.kv.length + had
            if had or not seq.decoding:
                fit = self.prompt(*at)
            else:
                fit = int(self.cost.predict(at[0] + 1, at[1] + at[2] + 1) <= self.fair)
            given += step.take(seq, min(cap - given, fit if step.rows else max(1, fit)))
        return given


class _Held:
    """Places and KV rows, held or promised, of each user, beside the equal parts."""

    def __init__(self, step: _queue.Step, reserve: int, part_slots: int, part_rows: int) -> None:
        self.step, self.reserve, self.part_slots, self.part_rows = step, reserve, part_slots, part_rows
        self.slots: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()
        for s in [*step.stay, *step.admit]:
            self._add(s, 1)

    def _add(self, seq: Seq, sign: int) -> None:
        self.slots[seq.request.user] += sign * seq.branches
        self.rows[seq.request.user] += sign * (seq.held + _queue.ask(seq, self.reserve))

    def _more(self, user: str) -> bool:
        return self.slots[user] > self.part_slots or self.rows[user] > self.part_rows

    def over(self) -> bool:
        """Whether any user has more than a part."""
        return any(self._more(user) for user in self.slots)

    def has_part(self, seq: Seq) -> bool:
        """Whether one more is still within its user's part."""
        user, rows = seq.request.user, _queue.ask(seq, self.reserve)
        return self.slots[user] + seq.branches <= self.part_slots and self.rows[user] + rows <= self.part_rows

    def victims(self, seq: Seq) -> Iterator[Seq]:
        """Whose places a sequence may take: of lower priority, then, within its user's part, the youngest of
        users with more than theirs."""
        priority, user = seq.request.priority, seq.request.user
        for s in reversed(self.step.stay):
            if s.request.priority < priority:
                yield s
        if self.has_part(seq):
            for s in reversed(self.step.stay):
                if s.request.priority == priority and s.request.user != user and self._more(s.request.user):
                    self._add(s, -1)
                    yield s


def _alone(seqs: Sequence[Seq], cost: StepCost, cap: int) -> float:
    """Seconds of a step with all the work of these."""
    n = read = 0
    for seq in seqs:
        rows = min(cap - n, len(seq.tokens) - seq.kv.length)
        n, read = n + rows, read + reads(rows, seq.kv.length)
    return cost.predict(n, read)
