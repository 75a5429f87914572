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
- a step lasts at most `stretch` times what the work of the least demanding user alone would take. Users get
  rows in the order of their counters, each an equal part of the step first, and of one user's answers those
  that waited longest. Steps of many rows take time in proportion to them, so the others lose company, not
  tokens.

Time, memory and preemption are otherwise as in `sarathi`.
"""

from __future__ import annotations

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
    stretch: float = 1.5  # times what the least demanding user's work takes alone that a step may last
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
            held = Counter(s.request.user for s in [*step.stay, *step.admit])
            user = min(queues, key=lambda u: self._next(queues[u][-1], held[u]))
            seq = queues[user][-1]
            rivals = [q[-1] for u, q in queues.items() if u != user]
            if held[user] >= part[0] and any(s.request.priority == seq.request.priority for s in rivals):
                del queues[user]
                continue
            if not (places.fits(seq) or places.make_way(seq, _victims(step, seq, *part))):
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
        answers = [s for s in step.stay if s.decoding]
        mean = sum(len(s.tokens) for s in answers) // max(1, len(answers))
        seconds = max(self.tbt if answers else self.alone, cost.predict(self.least, self.least * mean))
        if len(work) > 1:
            seconds = min(seconds, self.stretch * min(_alone(seqs, cost, cap) for seqs in work))
        part = cost.rows_within(seconds, 0, 0, mean) // max(1, len(work))
        for most in (max(1, part), cap):  # to each user the same, then what is left
            for seqs in work:
                cap -= _serve(step, seqs, cost, seconds, min(most, cap))


def _victims(step: _queue.Step, seq: Seq, slots: int, kv: int) -> Iterator[Seq]:
    """Whose places a sequence may take: of lower priority, then the youngest of users with more than their
    part, if its own user has less."""
    priority, user = seq.request.priority, seq.request.user
    yield from (s for s in reversed(step.stay) if s.request.priority < priority)
    places: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for s in [*step.stay, *step.admit]:
        places[s.request.user] += s.branches
        rows[s.request.user] += s.held
    if places[user] + seq.branches > slots or rows[user] + len(seq.tokens) > kv:
        return
    for s in reversed([s for s in step.stay if s.request.priority == priority]):
        other = s.request.user
        if other != user and (places[other] > slots or rows[other] > kv):
            places[other] -= s.branches
            rows[other] -= s.held
            yield s


def _alone(seqs: Sequence[Seq], cost: StepCost, cap: int) -> float:
    """Seconds of a step with all the work of these."""
    n = read = 0
    for seq in seqs:
        rows = min(cap - n, len(seq.tokens) - seq.kv.length)
        n, read = n + rows, read + reads(rows, seq.kv.length)
    return cost.predict(n, read)


def _serve(step: _queue.Step, seqs: Sequence[Seq], cost: StepCost, seconds: float, cap: int) -> int:
    """Give rows to these while the step lasts no longer than `seconds`; its first row always goes."""
    given = 0
    for seq in seqs:
        had = step.rows.get(seq.id, (seq, 0))[1]
        fit = cost.rows_within(seconds, step.n, step.read, seq.kv.length + had)
        given += step.take(seq, min(cap - given, fit if step.rows else max(1, fit)))
    return given
