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
ask. A node is to the credit of the first that proposes it, and one whose nodes did not save
the time that they and their asking took rests, each time for twice as many steps; other sequences rest on from
there. Who rested is asked again when `spend` of the time of all steps has saved up for it, all of them together,
so what finds nothing costs that share, whatever the model, the batch and the number of drafters. For as much time
again drafts are run that seem not to pay, so that a change, or a step that only happened to be slow, is noticed;
and a few steps are run without drafts, as are the first few of each size: nobody else would find out what a plain
step takes.
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
from pronghorn.methods.draft._mood import Mood, Panel
from pronghorn.methods.draft._value import Ledger, worth
from pronghorn.ops.cpu._native import Forest, Odds
from pronghorn.seq import Seq
from pronghorn.slots import Drafter, DraftRoom
from pronghorn.types import Accept, Draft, Guarantee, Traits

NOTHING = Draft.empty()


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
            stores=tuple(sorted({m for x in own for m in x.stores})),
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
        return Panel(len(self._names), self.spend)

    def propose(self, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom) -> list[Draft]:
        panel, ledger, out = self._panel, self._ledger, [NOTHING] * len(seqs)
        if panel.sleeps(seqs):
            return out
        start = time.perf_counter()
        moods = [self._mood(s) for s in seqs]
        step = room.cost.predict(room.base, room.read)
        asked = panel.wake(seqs, moods, k, ledger.chooses.seconds + ledger.learns.seconds, step)
        if not asked:
            return out
        if ledger.abstains(room, len(seqs)):
            panel.asking = False
            return out
        forest = panel.forest = Forest(self._odds)
        panel.n_seqs = len(seqs)
        mine = [(i, mood) for i, mood in enumerate(moods) if mood.asked]
        for i, mood in mine:
            mood.tree = forest.add(mood.shift, seqs[i].request.temperature > 0)
        drafted: list[set[int]] = [set() for _ in mine]
        asking = 0.0
        for d, of in sorted(asked.items()):
            begin = time.perf_counter()
            drafts = self._drafters[d].propose([seqs[i] for i in of], [k[i] for i in of], room)
            seconds = time.perf_counter() - begin
            panel.proposes[d].note(seconds / len(of))
            asking += seconds
            for i, draft in zip(of, drafts, strict=True):
                if draft.n:
                    tree = moods[i].tree
                    drafted[tree].add(d)
                    forest.join(tree, d, draft.tokens, draft.parent, draft.score, self.nodes)
        if any(drafted):
            chosen = self._choose(forest, drafted, len(seqs), step, room)
            for (i, mood), nodes in zip(mine, chosen, strict=True):
                if nodes:
                    tokens, parents, by = forest.draft(mood.tree, nodes)
                    out[i] = Draft(tokens, parents, by="+".join(self._names[d] for d in by))
        ledger.steps += step
        ledger.chooses.note(max(0.0, time.perf_counter() - start - asking) / len(mine))
        return out

    def _choose(
        self, forest: Forest, drafted: list[set[int]], n_seqs: int, step: float, room: DraftRoom
    ) -> list[list[int]]:
        """Nodes of each tree to run, parents first. drafted: whose nodes a tree has; step: seconds of the
        step without drafts."""
        panel = self._panel
        n, panel.token, panel.row = worth(forest.falling(), n_seqs, room)
        chosen = forest.take(n)
        for t, own_nodes in enumerate(chosen):
            for d in () if own_nodes else sorted(drafted[t]):
                probe = forest.likely(t, d)[: room.rows - n]
                if not chosen[t] and self._ledger.affords(len(probe) * step / room.base, self.spend):
                    chosen[t] = probe
        return chosen

    def observe(
        self, seqs: Sequence[Seq], drafts: Sequence[Draft], accepts: Sequence[Accept],
        taps: Sequence[dict[str, NDArray[Any]]],
    ) -> None:  # fmt: skip
        panel = self._panel
        if not panel.asking:
            return
        start = time.perf_counter()
        own = self._ledger.chooses.seconds + self._ledger.learns.seconds
        asked: dict[int, list[int]] = {}
        for i, seq in enumerate(seqs):
            mood = self._mood(seq)
            if mood.tree < 0:
                continue
            new = [*drafts[i].tokens[accepts[i].path].tolist(), accepts[i].bonus]
            mood.shift, run, stood = panel.forest.learn(mood.tree, new)
            panel.judge(mood, run, stood, own)
            for d in mood.asked:
                asked.setdefault(d, []).append(i)
            mood.tree = -1
        if asked:
            seconds = time.perf_counter() - start
            self._ledger.learns.note(seconds / max(len(of) for of in asked.values()))
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
