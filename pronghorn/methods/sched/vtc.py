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
- a step lasts at most `stretch` times what the work of the least demanding user alone would take. First each
  user gets an equal part of its rows, the least demanding first; what is left goes in the order of the
  counters. Of one user's answers those that waited longest go first. Steps of many rows take time in
  proportion to them, so the others lose company, not tokens.

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
        self._fill(step, room)
        plan = step.plan()
        ledger.close([s for s in waiting if s not in step.admit] if step.admit else waiting, plan.rows)
        return plan

    # ------------------------------------------------------------------ who starts

    def _admit(self, step: _queue.Step, waiting: Sequence[Seq], places: _queue.Places) -> None:
        queues: dict[str, list[Seq]] = {}  # of each user, the first at the end
        for seq in sorted(waiting, key=_queue.turn, reverse=True):
            queues.setdefault(seq.request.user, []).append(seq)
        users = {*queues, *(s.request.user for s in step.stay)}
        total = places.slots + sum(s.branches for s in step.stay)
        part = -(-total // len(users)), (step.free + sum(s.held for s in step.stay)) // len(users)
        while queues:
            held, rows = _held(step, self.reserve)
            user = min(queues, key=lambda u: self._next(queues[u][-1], held[u]))
            seq = queues[user][-1]
            rivals = [q[-1] for u, q in queues.items() if u != user]
            more = held[user] >= part[0] or rows[user] + _queue.ask(seq, self.reserve) > part[1]
            if held[user] and more and any(s.request.priority == seq.request.priority for s in rivals):
                del queues[user]
                continue
            if not (places.fits(seq) or places.make_way(seq, _victims(step, seq, self.reserve, *part))):
                return
            places.start(seq)
            self._ledger.start(seq)
            queues[user].pop()
            if not queues[user]:
                del queues[user]

    def _next(self, seq: Seq, held: int) -> tuple[float, float, int, float]:
        return -seq.request.priority, self._ledger.of(seq), held, seq.arrival

    # ------------------------------------------------------------------ who gets rows

    def _fill(self, step: _queue.Step, room: Room) -> None:
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
        for _, i in sorted(zip(demand, range(len(work)), strict=True)):
            cap -= limit.serve(step, work[i], min(part, cap))
        for seqs in work:
            cap -= limit.serve(step, seqs, cap)


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
            had = step.rows.get(seq.id, (seq, 0))[1]
            at = step.n, step.read, seq.kv.length + had
            fit = self.cost.rows_within(self.fair, *at) if seq.decoding else self.prompt(*at)
            given += step.take(seq, min(cap - given, fit if step.rows else max(1, fit)))
        return given


def _held(step: _queue.Step, reserve: int) -> tuple[Counter[str], Counter[str]]:
    """Places of each user, and KV rows held or promised."""
    places: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for s in [*step.stay, *step.admit]:
        places[s.request.user] += s.branches
        rows[s.request.user] += s.held + _queue.ask(s, reserve)
    return places, rows


def _victims(step: _queue.Step, seq: Seq, reserve: int, slots: int, kv: int) -> Iterator[Seq]:
    """Whose places a sequence may take: of lower priority, then the youngest of users with more than their
    part, if its own user has less."""
    priority, user = seq.request.priority, seq.request.user
    yield from (s for s in reversed(step.stay) if s.request.priority < priority)
    places, rows = _held(step, reserve)
    if places[user] + seq.branches > slots or rows[user] + _queue.ask(seq, reserve) > kv:
        return
    for s in reversed([s for s in step.stay if s.request.priority == priority]):
        other = s.request.user
        if other != user and (places[other] > slots or rows[other] > kv):
            places[other] -= s.branches
            rows[other] -= s.held + _queue.ask(s, reserve)
            yield s


def _alone(seqs: Sequence[Seq], cost: StepCost, cap: int) -> float:
    """Seconds of a step with all the work of these."""
    n = read = 0
    for seq in seqs:
        rows = min(cap - n, len(seq.tokens) - seq.kv.length)
        n, read = n + rows, read + reads(rows, seq.kv.length)
    return cost.predict(n, read)
