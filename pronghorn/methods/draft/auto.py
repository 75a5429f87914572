"""Drafts from several drafters, as many as pay on this machine, and none where none do.

Every drafter named in `drafters` is asked; their drafts are joined into one tree. How often nodes of a kind
(drafter, its own confidence, depth; greedy or not) stood once their parent did is counted, also of nodes that
were not run, with what is particular to a sequence on top, so that each node has a probability to stand. Of
the nodes of all sequences together the likeliest are run: as many as give the most tokens per second by the
measured cost of a step (`room.cost`). In a large batch rows are dear and that becomes none.

This is the budget rule of Sequoia (Chen et al., 2024, arXiv 2402.12374, section 4.3) and the threshold of
SpecDec++ (Huang et al., 2024, arXiv 2405.19715: stop where the chance that the draft goes on is too low),
with probabilities from counting instead of a trained head, and for a whole batch. To choose among drafters
online is a bandit problem; here their drafts are no rivals, and what is to be learned is only whom it pays to
ask. A node is to the credit of the first that proposes it. One whose nodes saved less time than they and the
asking took, on the average of the last times, rests, each time for twice as many steps, all sequences of a
batch up to the same one. It is asked again when `spend` of the time of steps has saved up for that: so what
finds nothing costs this share of the time and no more, whatever a step takes and however many sequences it
has. One that can tell in hindsight what it would have had right (`slots.Hindsight`) is looked at every few
steps where a sequence is alone, for next to nothing: an answer may begin to repeat itself late, and then it
is asked at once; while it would have been wrong it is not. In another sequence those that are cheap to ask
begin anew. Now and then drafts are run that seem not to pay, so that a change, or a step that only happened
to be slow, is noticed; and a step is run without drafts, as are the first few of each size: nobody else would
find out what a plain step takes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from pronghorn.compose import name_of, names, parse
from pronghorn.errors import MethodError
from pronghorn.methods.draft._plain import Plain
from pronghorn.methods.draft._single import Fixed
from pronghorn.ops.cpu._native import Mood, Panel
from pronghorn.seq import Seq
from pronghorn.slots import Drafter, DraftRoom, Hindsight
from pronghorn.types import Accept, Draft, Guarantee, Traits

NOTHING = Draft.empty()
LOOK = 16  # steps after which a sequence alone is looked at in hindsight
BACK = 8  # tokens that are looked back at
RIGHT = 4  # of them that one must have had right


class _Last:
    """The last step in which was looked at who is asked: its sequences, what they taught, and who was asked
    for which of them."""

    def __init__(self) -> None:
        self.seqs: Sequence[Seq] = ()
        self.moods: list[Mood] = []
        self.asked: list[tuple[int, list[int]]] = []


@dataclass(frozen=True)
class Auto:
    # who is asked, with their options, joined with +; a node is to the credit of the first that proposes it,
    # so the cheap ones come first
    drafters: str = "prompt-lookup+suffix+token-recycling+aggressive"
    nodes: int = 32  # rows of one sequence's draft at most
    spend: float = 0.0075  # share of the time of steps for asking drafters that bring nothing, all together

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= 1024:
            raise MethodError(f"auto: nodes is from 1 to 1024, not {self.nodes}")
        if not 0 < self.spend <= 1:
            raise MethodError(f"auto: spend is above 0 and at most 1, not {self.spend}")
        if not self._drafters:
            raise MethodError("auto: drafters names nobody")

    def __hash__(self) -> int:
        return self._hash  # asked several times a step, for every sequence

    @cached_property
    def _hash(self) -> int:
        return hash((self.drafters, self.nodes, self.spend))

    @property
    def traits(self) -> Traits:
        own = [d.traits for d in self._drafters]
        return Traits(
            Guarantee.EXACT, taps=tuple(sorted({t for x in own for t in x.taps})),
            models=tuple(sorted({m for x in own for m in x.models})),
            stores=tuple(sorted({m for x in own for m in x.stores})), prices=True,
        )  # fmt: skip

    @cached_property
    def _drafters(self) -> list[Drafter]:
        others = [n for n in names()["draft"] if n != "auto"]
        some = "|".join(map(re.escape, others))
        specs = [x for x in re.split(rf"\+(?=(?:{some})(?:[:+]|$))", self.drafters) if x]
        for spec in specs:
            if spec.partition(":")[0] not in others:
                raise MethodError(f"auto: no drafter called {spec!r}; known: {', '.join(others)}")
        return [parse(f"draft.{spec}", files=False)[1] for spec in specs]

    @cached_property
    def _telling(self) -> dict[int, Hindsight]:
        return {d: drafter for d, drafter in enumerate(self._drafters) if isinstance(drafter, Hindsight)}

    @cached_property
    def _panel(self) -> Panel:
        return Panel([name_of(d) for d in self._drafters], self.spend, list(self._telling))

    @cached_property
    def _plain(self) -> Plain:
        return Plain()

    @cached_property
    def _last(self) -> _Last:
        return _Last()

    @cached_property
    def _learners(self) -> frozenset[int]:
        """Drafters that want to know what became of their drafts."""
        return frozenset(d for d, drafter in enumerate(self._drafters) if not isinstance(drafter, Fixed))

    def propose(self, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom) -> list[Draft]:
        panel, last = self._panel, self._last
        same = seqs == last.seqs
        sleeps = panel.sleeps(len(seqs), same)
        if len(seqs) == 1 and panel.clock % LOOK == 0 and self._hopes(seqs[0]):
            sleeps = False
        if sleeps:
            return []
        if not panel.goes_on(same, min(k)):
            last.seqs, last.moods = seqs, [self._mood(s) for s in seqs]
            step = room.cost.predict(room.base, room.read)
            last.asked = panel.wake(last.moods, k, [s.n_new for s in seqs], step)
        if not last.asked or self._plain.due(room, len(seqs)):
            return []
        answers = []
        for d, of in last.asked:
            begin = time.perf_counter()
            drafts = self._drafters[d].propose([seqs[i] for i in of], [k[i] for i in of], room)
            answers.append((d, of, drafts, time.perf_counter() - begin))
        chosen = panel.choose(
            last.moods, answers, [s.request.temperature > 0 for s in seqs], self.nodes, *room.cost.curve(),
            room.base, room.read, room.rows,
        )  # fmt: skip
        if chosen is None and self._learners.isdisjoint(d for d, _ in last.asked):
            return []
        out = [NOTHING] * len(seqs)
        for i, tokens, parents, by in chosen or ():
            out[i] = Draft(tokens, parents, by=by)
        return out

    def observe(
        self, seqs: Sequence[Seq], drafts: Sequence[Draft], accepts: Sequence[Accept],
        taps: Sequence[dict[str, NDArray[Any]]],
    ) -> None:  # fmt: skip
        last = self._last
        at = {seq: i for i, seq in enumerate(seqs)}
        self._panel.learn([self._mood(s) for s in seqs], drafts, accepts)
        for d, of in last.asked:
            mine = [at[last.seqs[i]] for i in of if last.seqs[i] in at] if d in self._learners else []
            if not mine:
                continue
            begin = time.perf_counter()
            self._drafters[d].observe(
                [seqs[i] for i in mine], [drafts[i] for i in mine], [accepts[i] for i in mine],
                [taps[i] for i in mine],
            )  # fmt: skip
            self._panel.told(d, (time.perf_counter() - begin) / len(mine))

    def _hopes(self, seq: Seq) -> bool:
        """Wake drafters that rest but would have been right of late, for a sequence that is alone: in company
        rows are dear, and a hope in vain costs all. Returns whether there are any."""
        mood, wakes = self._mood(seq), False
        for d, drafter in self._telling.items():
            if mood.rests(d) and seq.n_new and drafter.right(seq, BACK) >= RIGHT:
                self._panel.hope(mood, d)
                wakes = True
        return wakes

    def _mood(self, seq: Seq) -> Mood:
        memory = seq.memory(self)
        mood: Mood | None = memory.get("mood")
        if mood is None:
            mood = memory["mood"] = self._panel.begin()
        return mood
