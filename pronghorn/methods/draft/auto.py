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
from pronghorn.methods.draft._mood import LOOK, Mood, Panel
from pronghorn.methods.draft._single import Fixed
from pronghorn.methods.draft._value import Ledger, worth
from pronghorn.ops.cpu._native import Forest, Odds
from pronghorn.seq import Seq
from pronghorn.slots import Drafter, DraftRoom, Hindsight
from pronghorn.types import Accept, Draft, Guarantee, Ints, Traits

NOTHING = Draft.empty()
Found = tuple[int, Ints, Ints, NDArray[Any]]  # a drafter, and tokens, parents and scores of its draft
DEAR = 0.02  # of a step: where learning takes more, it is done in every second one while the same pay


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
    def _names(self) -> tuple[str, ...]:
        return tuple(name_of(d) for d in self._drafters)

    @cached_property
    def _odds(self) -> Odds:
        return Odds(len(self._names))

    @cached_property
    def _ledger(self) -> Ledger:
        return Ledger()

    @cached_property
    def _panel(self) -> Panel:
        telling = {d: drafter for d, drafter in enumerate(self._drafters) if isinstance(drafter, Hindsight)}
        return Panel(len(self._names), self.spend, telling)

    @cached_property
    def _learners(self) -> frozenset[int]:
        """Drafters that want to know what became of their drafts."""
        return frozenset(d for d, drafter in enumerate(self._drafters) if not isinstance(drafter, Fixed))

    def propose(self, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom) -> list[Draft]:
        panel = self._panel
        sleeps = panel.sleeps(seqs)
        if panel.clock % LOOK == 0 and len(seqs) == 1 and panel.look_back(seqs[0], self._mood(seqs[0])):
            sleeps = False
        if sleeps:
            return []
        ledger, out = self._ledger, [NOTHING] * len(seqs)
        start = time.perf_counter()
        asked = panel.goes_on(seqs, k)
        teaches = not asked or panel.clock % 2 == 0 or ledger.learns.seconds < DEAR * panel.step
        if not asked:
            step = room.cost.predict(room.base, room.read)
            asked = panel.wake(seqs, [self._mood(s) for s in seqs], k, ledger.looks.seconds, step)
        moods, step = panel.moods, panel.step
        if not asked or ledger.abstains(room, len(seqs)):
            return []
        asking, found = 0.0, dict[int, list[Found]]()  # of each sequence
        for d, of in sorted(asked.items()):
            begin = time.perf_counter()
            drafts = self._drafters[d].propose([seqs[i] for i in of], [k[i] for i in of], room)
            seconds = time.perf_counter() - begin
            panel.proposes[d].note(seconds / len(of))
            asking += seconds
            for i, draft in zip(of, drafts, strict=True):
                if draft.n:
                    found.setdefault(i, []).append((d, draft.tokens, draft.parent, draft.score))
        if found:
            self._choose(found, seqs, moods, step, room, out)
        ledger.steps += step
        if teaches:
            mine = [mood for mood in moods if mood.asked]
            for mood in mine:
                if mood.tree < 0:
                    panel.judge(mood, (), (), ledger.looks.seconds)
            own = ledger.chooses if found else ledger.looks
            own.note(max(0.0, time.perf_counter() - start - asking) / len(mine))
        else:
            for mood in moods:
                mood.tree = -1
        return out if found or not self._learners.isdisjoint(asked) else []

    def _choose(
        self, found: dict[int, list[Found]], seqs: Sequence[Seq], moods: list[Mood], step: float,
        room: DraftRoom, out: list[Draft],
    ) -> None:  # fmt: skip
        """Join drafts, and put the nodes to run into `out`. step: seconds of the step without drafts."""
        panel = self._panel
        forest = panel.forest = Forest(self._odds)
        for i, drafts in found.items():
            moods[i].tree = forest.grow(moods[i].shift, seqs[i].request.temperature > 0, drafts, self.nodes)
        n, panel.token, panel.row = worth(forest.falling(), len(seqs), room)
        for t, (i, some) in enumerate(zip(found, forest.run(n), strict=True)):
            for d, *_ in () if some else found[i]:
                probe = forest.likely(t, d)[: room.rows - n]
                if not some and self._ledger.affords(len(probe) * step / room.base):
                    some = forest.draft(t, probe)
            if some:
                tokens, parents, whose = some
                out[i] = Draft(tokens, parents, by="+".join(self._names[d] for d in whose))

    def observe(
        self, seqs: Sequence[Seq], drafts: Sequence[Draft], accepts: Sequence[Accept],
        taps: Sequence[dict[str, NDArray[Any]]],
    ) -> None:  # fmt: skip
        panel, ledger = self._panel, self._ledger
        start = time.perf_counter()
        asked: dict[int, list[int]] = {}
        learned = 0
        for i, (seq, draft, accept) in enumerate(zip(seqs, drafts, accepts, strict=True)):
            mood = self._mood(seq)
            if mood.tree >= 0:
                new = [*draft.tokens[accept.path].tolist(), accept.bonus] if accept.path else [accept.bonus]
                mood.shift, run, stood = panel.forest.learn(mood.tree, new)
                panel.judge(mood, run, stood, ledger.chooses.seconds + ledger.learns.seconds)
                learned += 1
            for d in self._learners.intersection(mood.asked):
                asked.setdefault(d, []).append(i)
        if learned:
            ledger.learns.note((time.perf_counter() - start) / learned)
        for d, of in asked.items():
            begin = time.perf_counter()
            self._drafters[d].observe(
                [seqs[i] for i in of], [drafts[i] for i in of], [accepts[i] for i in of],
                [taps[i] for i in of],
            )  # fmt: skip
            panel.learns[d].note((time.perf_counter() - begin) / len(of))

    def _mood(self, seq: Seq) -> Mood:
        memory = seq.memory(self)
        mood: Mood | None = memory.get("mood")
        if mood is None:
            mood = memory["mood"] = self._panel.begin()
        return mood
