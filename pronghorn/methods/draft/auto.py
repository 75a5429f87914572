"""Drafts from several drafters, as many as pay on this machine, and none where none do.

Every drafter named in `drafters` is asked; their drafts are joined into one tree. How often nodes of a kind
(drafter, its own confidence, depth; greedy or not) stood once their parent did is counted, with what is
particular to a sequence on top, so that each node has a probability to stand. Of the nodes of all sequences
together the likeliest are run: as many as give the most tokens per second by the measured cost of a step
(`room.cost`). In a large batch rows are dear and that becomes none.

This is the budget rule of Sequoia (Chen et al., 2024, arXiv 2402.12374, section 4.3) and the threshold of
SpecDec++ (Huang et al., 2024, arXiv 2405.19715: stop where the chance that the draft goes on is too low),
with probabilities from counting instead of a trained head, and for a whole batch. To choose among drafters
online is a bandit problem; here their drafts are no rivals, and what is to be learned is only whom it pays to
ask. One whose nodes are not worth its time rests, each time for twice as many steps, up to where its price is
`spend` of the time of steps. For as much time again drafts are run that seem not to pay, so that a change, or
a step that only happened to be slow, is noticed.
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
from pronghorn.methods.draft._merge import HOPE, RECENT, Merged, Mood, prior
from pronghorn.methods.draft._value import Ledger, Odds, worth
from pronghorn.seq import Seq
from pronghorn.slots import Drafter, DraftRoom
from pronghorn.types import Accept, Draft, Guarantee, Traits


@dataclass(frozen=True)
class Auto:
    drafters: str = "suffix+token-recycling"  # who is asked, with their options, joined with +
    nodes: int = 32  # rows of one sequence's draft at most
    spend: float = 0.005  # share of a step's time that a drafter which brings nothing may take

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
        return Odds(prior)

    @cached_property
    def _ledger(self) -> Ledger:
        return Ledger()

    @cached_property
    def _usual(self) -> Mood:
        """What sequences lately taught: how a new one begins."""
        nothing = [0] * len(self._names)
        return Mood([HOPE] * len(self._names), nothing, nothing)

    @cached_property
    def _proposes(self) -> list[float]:
        """Seconds that each drafter takes to propose for one sequence, lately."""
        return [0.0] * len(self._names)

    @cached_property
    def _learns(self) -> list[float]:
        """Seconds that each takes to learn from a step."""
        return [0.0] * len(self._names)

    def propose(self, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom) -> list[Draft]:
        start = time.perf_counter()
        out = [Draft.empty() for _ in seqs]
        moods = [self._mood(s) for s in seqs]
        asked: dict[int, list[int]] = {}
        for i, mood in enumerate(moods):
            for d in mood.awake() if k[i] > 0 else ():
                asked.setdefault(d, []).append(i)
        if not asked:
            return out
        trees: dict[int, Merged] = {}
        for d, of in asked.items():
            begin = time.perf_counter()
            drafts = self._drafters[d].propose([seqs[i] for i in of], [k[i] for i in of], room)
            took = (time.perf_counter() - begin) / len(of)
            self._proposes[d] += 0.1 * (took - self._proposes[d])
            for i, draft in zip(of, drafts, strict=True):
                if i not in trees:
                    trees[i] = Merged(moods[i], self._odds, seqs[i].request.temperature > 0)
                trees[i].join(d, draft, self.nodes)
        for i, nodes in self._choose(trees, len(seqs), room).items():
            if nodes:
                out[i] = trees[i].draft(nodes, self._names)
        own = (time.perf_counter() - start) / len(trees) - sum(self._proposes)
        self._ledger.chooses += 0.1 * (max(own, 0.0) - self._ledger.chooses)
        return out

    def _choose(self, trees: dict[int, Merged], n_seqs: int, room: DraftRoom) -> dict[int, list[int]]:
        """Nodes of each tree to run, parents first; and who was not worth its time rests."""
        line = [(-p, i, j) for i, tree in trees.items() for j, p in enumerate(tree.chance)]
        line.sort()
        n, token, row = worth([-x[0] for x in line], n_seqs, room)
        chosen: dict[int, list[int]] = {i: [] for i in trees}
        brought = {(i, d): 0.0 for i, tree in trees.items() for d in tree.mood.asked}
        for minus, i, j in line[:n]:
            chosen[i].append(j)
            brought[i, trees[i].by[j]] -= minus * token + row
        step = room.cost.predict(room.base, room.read)
        self._ledger.steps += step
        for (i, d), saved in brought.items():
            tree = trees[i]
            seconds = self._proposes[d] + self._learns[d]
            if d in tree.by:
                seconds += (self._ledger.chooses + self._ledger.learns) / len(tree.mood.asked)
            most = int(seconds * n_seqs / (self.spend * step)) if step > 0 else 0
            tree.mood.judge(d, saved - seconds, most)
            self._usual.gain[d] += RECENT * (saved - seconds - self._usual.gain[d])
            self._usual.failed[d], self._usual.rest[d] = tree.mood.failed[d], tree.mood.rest[d]
            if not chosen[i] and d in tree.by:
                probe = tree.likely(d)[: room.rows - n]
                if self._ledger.affords(len(probe) * step / room.base, self.spend):
                    chosen[i] = probe
        return chosen

    def observe(
        self, seqs: Sequence[Seq], drafts: Sequence[Draft], accepts: Sequence[Accept],
        taps: Sequence[dict[str, NDArray[Any]]],
    ) -> None:  # fmt: skip
        start = time.perf_counter()
        asked: dict[int, list[int]] = {}
        for i, seq in enumerate(seqs):
            mood = self._mood(seq)
            if not mood.asked:
                continue
            if drafts[i].n:
                mood.learn(drafts[i], accepts[i], self._odds)
            for d in mood.asked:
                asked.setdefault(d, []).append(i)
        if asked:
            own = (time.perf_counter() - start) / max(len(of) for of in asked.values())
            self._ledger.learns += 0.1 * (own - self._ledger.learns)
        for d, of in asked.items():
            begin = time.perf_counter()
            self._drafters[d].observe(
                [seqs[i] for i in of], [drafts[i] for i in of], [accepts[i] for i in of],
                [taps[i] for i in of],
            )  # fmt: skip
            self._learns[d] += 0.1 * ((time.perf_counter() - begin) / len(of) - self._learns[d])

    def _mood(self, seq: Seq) -> Mood:
        memory = seq.memory(self)
        if "mood" not in memory:
            memory["mood"] = Mood(self._usual.gain, self._usual.failed, self._usual.rest)
        mood: Mood = memory["mood"]
        return mood
