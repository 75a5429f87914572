"""Offline batches: requests that share a prefix run together, those with long answers first (BatchLLM, Zheng
et al., 2024, arXiv 2412.03594: its explicit prefix identification, group scheduling and request reordering).

All that waits is looked at as a whole. Over the tree of common prefixes a dynamic program picks groups so
that one prefix to a group saves the most prompt rows; a group runs as a block, so that its prefix is computed
once and can be forgotten after it. Groups go by the share of answer rows in what they cost, most first: their
answers run beside the prompts of later groups. Sequences start as memory allows rather than by number, and
steps are filled with prompt rows to a constant size.

Departures: the program finds the best partition into prefixes of one level instead of merging greedily.
Within a group prompts stay in the order of the tree, so that a reuse method finds deeper common prefixes too.
The order takes answers to be `max_tokens` long; memory goes by what is held, and where it runs short the last
in order is preempted. Users and deadlines are ignored; priorities order what waits, and take nobody's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from pronghorn.errors import MethodError
from pronghorn.methods.sched import _queue
from pronghorn.methods.sched._prefixes import Group, groups
from pronghorn.seq import Seq
from pronghorn.slots import Room, StepPlan
from pronghorn.types import Guarantee, Traits


@dataclass(frozen=True)
class Batch:
    rows: int = 0  # rows of one step; 0: the fewest that run nearly as fast as any, 64 to 2048
    max_running: int = 256  # sequences under way at once
    reserve: int = 64  # KV rows of its answer that must be free for a sequence to start

    traits = Traits(Guarantee.EXACT)

    def __post_init__(self) -> None:
        _queue.positive(self, "max_running", "reserve")
        if self.rows < 0:
            raise MethodError(f"batch: rows is 0 or above, not {self.rows}")

    @cached_property
    def _line(self) -> _Line:
        return _Line()

    def plan(self, waiting: Sequence[Seq], running: Sequence[Seq], room: Room) -> StepPlan:
        line = self._line
        step = _queue.keep(running, room.kv_rows, line.place)
        slots = self.max_running - sum(s.branches for s in step.stay)
        if _queue.Places(step, slots, self.reserve).open:
            first = line.first(slots, waiting, running)
            _queue.admit(step, first, slots, self.reserve, line.place)
        size = self.rows or max(64, room.cost.saturation(2048))
        _queue.fill(step, min(size, room.rows))
        return step.plan()


class _Line:
    """The order of all, made anew when somebody new waits."""

    def __init__(self) -> None:
        self._line: list[Seq] = []
        self._place: dict[int, tuple[int, int]] = {}  # sequence -> priority, place

    def place(self, seq: Seq) -> tuple[int, int]:
        return self._place.get(seq.id, (-seq.request.priority, -1))  # a branch came with its leader

    def first(self, n: int, waiting: Sequence[Seq], running: Sequence[Seq]) -> list[Seq]:
        """The first n of those who wait."""
        here = {s.id for s in waiting}
        if not here <= self._place.keys():
            self._order([*running, *waiting])
        ended = next((i for i, s in enumerate(self._line) if not s.finish), len(self._line))
        del self._line[:ended]
        return list(islice((s for s in self._line if s.id in here), n))

    def _order(self, seqs: Sequence[Seq]) -> None:
        found = groups([s.tokens[: s.n_prompt] for s in seqs])
        found.sort(key=lambda g: -_answers(g, seqs))
        ordered = [seqs[i] for g in found for i in g.members]
        self._line = sorted(ordered, key=lambda s: -s.request.priority)
        self._place = {s.id: (-s.request.priority, i) for i, s in enumerate(self._line)}


def _answers(group: Group, seqs: Sequence[Seq]) -> float:
    """Answer rows for each prompt row that has to run."""
    members = [seqs[i] for i in group.members]
    prompt = sum(s.n_prompt for s in members) - group.saved
    return sum(s.branches * s.request.new_rows for s in members) / max(1, prompt)
