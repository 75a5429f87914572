"""What the optimistic schedulers share: who keeps its KV, who starts, and how a step is filled.

Memory is handed out by what sequences hold, not by what they may come to hold. A sequence starts when its
known tokens and `reserve` rows of its answer fit beside what the running ones were promised in the same way;
the reserve doubles each time a sequence was preempted, up to all that it may need. When the next step's rows
do not fit, the last in rank gives up its KV. Its tokens stay, so every answer token is progress that no
preemption undoes, and the first in rank is never preempted for memory: there is no livelock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pronghorn.cost import StepCost, reads
from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE
from pronghorn.seq import Seq
from pronghorn.slots import StepPlan

Key = Callable[[Seq], Any]


def rank(seq: Seq) -> tuple[float, float, float, int]:
    """Order of those under way: priority, deadline, arrival."""
    r = seq.request
    return -r.priority, r.deadline, seq.arrival, seq.id


def turn(seq: Seq) -> tuple[float, bool, float, float, int]:
    """Order of those that wait: as `rank`, but within a priority the preempted ones come first."""
    r = seq.request
    return -r.priority, not seq.counts.preempted, r.deadline, seq.arrival, seq.id


def growth(seq: Seq, n: int) -> int:
    """Rows of pages that n more rows of a sequence take."""
    held = seq.held
    return (-(-(held + n) // PAGE) + (-held // PAGE)) * PAGE


def width(seq: Seq) -> int:
    """Rows of the next step that a sequence needs at least: a token and, as so far, its drafts."""
    if not seq.decoding:
        return 1
    return 1 + seq.counts.draft_rows // max(1, seq.counts.steps)


def ask(seq: Seq, reserve: int) -> int:
    """Rows that a sequence is promised beyond those that are stored: its known tokens and a part of what
    its answer may still take, in whole pages."""
    answer = max(0, seq.request.new_rows - seq.n_new)
    some = min(answer, reserve << min(seq.counts.preempted, 16))
    return -(-(len(seq.tokens) - seq.kv.length + seq.branches * some) // PAGE) * PAGE


@dataclass
class Step:
    """The decisions of one step. stay: running ones that keep their KV, first in rank first; free: KV rows
    that nobody holds."""

    stay: list[Seq]
    free: int
    preempt: list[Seq] = field(default_factory=list)
    admit: list[Seq] = field(default_factory=list)
    rows: dict[int, tuple[Seq, int]] = field(default_factory=dict)  # by sequence
    n: int = 0  # rows of the step so far, drafts included
    read: int = 0  # KV rows that they read

    def drop(self, victims: Iterable[Seq]) -> None:
        """Preempt."""
        for victim in victims:
            self.stay.remove(victim)
            self.preempt.append(victim)
            self.free += victim.held

    def take(self, seq: Seq, most: int) -> int:
        """Give a sequence up to `most` rows, or so many more, as far as its tokens and the KV go; a step's
        first row always fits. Returns how many it has got now."""
        had = self.rows.get(seq.id, (seq, 0))[1]
        length = seq.kv.length + had
        room = self.free // PAGE * PAGE + -(seq.held + had) % PAGE
        n = min(most, len(seq.tokens) - length, room if self.rows else max(1, room))
        if n <= 0:
            return 0
        wide = n if had else max(n, width(seq))
        self.free -= growth(seq, had + wide) - growth(seq, had)
        self.rows[seq.id] = seq, had + n
        self.n += wide
        self.read += reads(wide, length)
        return n

    def plan(self, seconds: float = math.inf) -> StepPlan:
        return StepPlan(tuple(self.admit), tuple(self.rows.values()), tuple(self.preempt), seconds)


def keep(running: Sequence[Seq], free: int, key: Key = rank) -> Step:
    """Preempt from the end until the next step's rows fit; one sequence stays in any case."""
    step = Step(sorted(running, key=key), free)
    need = sum(growth(s, width(s)) for s in step.stay)
    while need > step.free and len(step.stay) > 1:
        last = step.stay[-1]
        need -= growth(last, width(last))
        step.drop([last])
    return step


@dataclass
class Places:
    """What is left to start sequences with: places under way, and KV rows promised to nobody."""

    step: Step
    slots: int
    reserve: int

    def __post_init__(self) -> None:
        self.spare = self.step.free - sum(ask(s, self.reserve) for s in self.step.stay)

    @property
    def open(self) -> bool:
        """Whether anybody could start here without another's place."""
        return not self.step.preempt and (not self.step.stay or min(self.slots, self.spare) > 0)

    def fits(self, seq: Seq) -> bool:
        """Alone a sequence always starts: there is nothing to wait for."""
        alone = not self.step.stay and not self.step.admit
        return alone or (seq.branches <= self.slots and ask(seq, self.reserve) <= self.spare)

    def start(self, seq: Seq) -> None:
        self.step.admit.append(seq)
        self.slots -= seq.branches
        self.spare -= ask(seq, self.reserve)

    def make_way(self, seq: Seq, victims: Iterable[Seq]) -> bool:
        """Preempt as many of `victims`, in their order, as let `seq` start; none if all are too few."""
        chosen: list[Seq] = []
        slots, spare = self.slots, self.spare
        for victim in victims:
            chosen.append(victim)
            self.slots += victim.branches
            self.spare += victim.held + ask(victim, self.reserve)
            if self.fits(seq):
                self.step.drop(chosen)
                return True
        self.slots, self.spare = slots, spare
        return False


def admit(step: Step, waiting: Sequence[Seq], slots: int, reserve: int, key: Key = turn) -> None:
    """Start waiting sequences in order; none overtakes another. One of higher priority may take the place of
    running ones of lower priority. After a preemption for memory nobody starts in the same step."""
    if step.preempt or not waiting:
        return
    places = Places(step, slots, reserve)
    if not places.open:
        least = min(s.request.priority for s in step.stay)
        waiting = [s for s in waiting if s.request.priority > least]  # the others could not start
    for seq in sorted(waiting, key=key):
        lower = (s for s in reversed(step.stay) if s.request.priority < seq.request.priority)
        if not (places.fits(seq) or places.make_way(seq, lower)):
            break
        places.start(seq)


def positive(method: Any, *names: str) -> None:
    """Options that must be above 0, or 1 and above where they count something."""
    for name in names:
        value = getattr(method, name)
        kind = type(method).__name__.lower()
        if isinstance(value, int) and value < 1:
            raise MethodError(f"{kind}: {name} is 1 or above, not {value}")
        if not value > 0:
            raise MethodError(f"{kind}: {name} is above 0, not {value}")


def slots(stay: Sequence[Seq], cost: StepCost, seconds: float, least: int, most: int) -> int:
    """How many more sequences may run: so many that a token of each keeps a step within `seconds`, but from
    `least` to `most` in all."""
    n = sum(s.branches for s in stay)
    read = sum(len(s.tokens) for s in stay)
    fit = cost.rows_within(seconds, n, read, read // max(1, n))
    return min(most - n, max(fit, least - n))


def fill(step: Step, size: int) -> None:
    """A row for each answer under way, then prompts, to `size` rows in all."""
    for seq in step.stay:
        if seq.decoding and size > 0:
            size -= step.take(seq, 1)
    for seq in [*step.stay, *step.admit]:
        if not seq.decoding and size > 0:
            size -= step.take(seq, size)
