"""A machine with a clock of its own, on which schedulers serve requests: what the engine does with a plan,
without a model. A step takes what `seconds` says, so every run is the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pronghorn.cost import StepCost, reads
from pronghorn.kv.layout import PAGE
from pronghorn.seq import Request, Seq
from pronghorn.slots import Room, StepPlan

Seconds = Callable[[int, int], float]


def laptop(rows: int, read: int) -> float:
    """Seconds of a step: flat up to eight rows, then linear, and a price for each read."""
    return 2e-3 * max(1.0, rows / 8) + 1e-7 * read


def learned(seconds: Seconds) -> StepCost:
    """A cost model that has seen this machine."""
    cost = StepCost()
    for rows in (1, 8, 16, 64, 256, 1024):
        for context in (0, 1000):
            read = reads(rows, context)
            cost.observe(rows, read, seconds(rows, read))
    return cost


class KV:
    """As much of `kv.store.SeqKV` as a scheduler may look at."""

    def __init__(self) -> None:
        self.length = 0

    @property
    def n_rows(self) -> int:
        return self.length

    @property
    def paged(self) -> int:
        return -(-self.length // PAGE) * PAGE


@dataclass
class Served:
    """What became of one sequence."""

    seq: Seq
    first: float = 0.0  # when its first token came
    end: float = 0.0
    gaps: list[float] = field(default_factory=list)  # between its tokens
    last: float = 0.0

    @property
    def latency(self) -> float:
        return self.end - self.seq.arrival


def fresh(number: int, ids: int | Sequence[int], new: int, at: float = 0.0, **more: Any) -> Seq:
    tokens = list(range(ids)) if isinstance(ids, int) else list(ids)
    request = Request(tuple(tokens), new, **more)
    return Seq(number, request, tokens, len(tokens), KV(), None, arrival=at)  # type: ignore[arg-type]


class Machine:
    """Serves sequences with a scheduler, and checks every plan."""

    def __init__(
        self, scheduler: Any, kv_rows: int = 100_000, rows: int = 4096, seconds: Seconds = laptop,
        pages: bool = True,
    ) -> None:  # fmt: skip
        self.scheduler, self.kv_rows, self.rows, self.seconds = scheduler, kv_rows, rows, seconds
        self.pages = pages  # what must not exceed the limit: pages held, or only rows
        self.cost = learned(seconds)
        self.now = 0.0
        self.waiting: list[Seq] = []
        self.running: list[Seq] = []
        self.served: dict[int, Served] = {}
        self.steps: list[list[tuple[int, int]]] = []  # (sequence, rows)
        self.preempted: list[int] = []
        self.seen: Callable[[StepPlan], None] = lambda plan: None

    def serve(self, seqs: Sequence[Seq], limit: int = 20_000) -> dict[int, Served]:
        """To the end."""
        coming = sorted(seqs, key=lambda s: s.arrival)
        while coming or self.waiting or self.running:
            if not (self.waiting or self.running):
                self.now = max(self.now, coming[0].arrival)
            while coming and coming[0].arrival <= self.now:
                seq = coming.pop(0)
                self.waiting.append(seq)
                self.served[seq.id] = Served(seq)
            self._step()
            assert len(self.steps) < limit, "this does not end"
        return self.served

    def _held(self) -> int:
        kvs: list[Any] = [s.kv for s in self.running]
        return sum(kv.paged if self.pages else kv.length for kv in kvs)

    def _step(self) -> None:
        room = Room(self.rows, self.kv_rows - self._held(), self.cost)
        plan = self.scheduler.plan(self.waiting, self.running, room)
        self.seen(plan)
        self._check(plan)
        for seq in plan.preempt:
            seq.kv.length = 0
            seq.counts.preempted += 1
            self.preempted.append(seq.id)
            self.running.remove(seq)
            self.waiting.insert(0, seq)
        for seq in plan.admit:
            self.waiting.remove(seq)
            self.running.append(seq)
        before = self._held()
        read = sum(reads(n, s.kv.length) for s, n in plan.rows)
        self.now += self.seconds(sum(n for _, n in plan.rows), read)
        for seq, n in plan.rows:
            seq.kv.length += n
        assert len(self.running) == 1 or self._held() <= max(self.kv_rows, before), "more KV than there is"
        for seq, _ in plan.rows:
            if seq.kv.length == len(seq.tokens):
                seq.tokens.append(0)
                self._token(seq)
        self.steps.append([(s.id, n) for s, n in plan.rows])
        self.running = [s for s in self.running if not s.finish]

    def _token(self, seq: Seq) -> None:
        served = self.served[seq.id]
        if seq.n_new == 1:
            served.first = self.now
        else:
            served.gaps.append(self.now - served.last)
        served.last = self.now
        if seq.n_new >= seq.request.max_tokens:
            seq.finish, served.end = "length", self.now

    def _check(self, plan: StepPlan) -> None:
        ids = [s.id for s, _ in plan.rows]
        assert plan.rows, "no progress"
        assert len(set(ids)) == len(ids), "a sequence twice"
        assert sum(n for _, n in plan.rows) <= self.rows
        assert len({s.id for s in plan.admit}) == len(plan.admit)
        assert all(s in self.waiting for s in plan.admit)
        assert all(s in self.running for s in plan.preempt)
        assert len(plan.preempt) < len(self.running) or plan.admit, "everybody preempted"
        for seq, n in plan.rows:
            assert seq in plan.admit or (seq in self.running and seq not in plan.preempt)
            assert 1 <= n <= len(seq.tokens) - seq.kv.length


def alone(scheduler: Any, seqs: Sequence[Seq], **machine: Any) -> dict[int, Served]:
    return Machine(scheduler, **machine).serve(seqs)
