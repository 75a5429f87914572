"""Drafts of several drafters as one tree whose nodes have chances, and what a sequence has taught of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pronghorn.methods.draft._value import FAINT, Kind, Odds
from pronghorn.types import Accept, Draft

PRIOR = 0.5  # chance of a first child whose drafter does not say how sure it is
RATE = 0.3  # of learning what is particular to a sequence
FAR = 4.0  # log-odds that a sequence may differ from what is usual, at most
DOUBLINGS = 8  # of a rest
RECENT = 0.05  # weight of the last asking
HOPE = 1e-4  # seconds that asking a drafter is thought to gain at first
RANKS = 8  # of siblings that are told apart
# kinds of a drafter's nodes: greedy or sampled, by the child's rank or by how sure the drafter was, by depth
PER_DRAFTER = 2 * (RANKS + 10) * 4
LIKELY = 0.3  # chance of nodes that are worth a trial


class Mood:
    """What one sequence has taught: how far each drafter's chances are off, and who rests.

    asked: drafters that proposed for the last step."""

    def __init__(self, gain: Sequence[float], failed: Sequence[int], rest: Sequence[int]) -> None:
        n = len(gain)
        self.shift = [0.0] * n  # log-odds
        # at first as lately in other sequences
        self.rest = list(rest)  # steps that a drafter is not asked in
        self.gain = list(gain)  # seconds that asking it gained, lately
        self.failed = list(failed)  # times in a row that this was not worth its time
        self.asked: list[int] = []
        self.sent: list[tuple[int, Kind]] = []  # token and kind of each node of the last draft
        self._all = 0  # steps that all rest for

    def awake(self) -> list[int]:
        """Who is asked in this step. Cheap where nobody is."""
        if self._all > 0:
            self._all -= 1
            self.asked = []
            return self.asked
        self.asked = [d for d, rest in enumerate(self.rest) if not rest]
        if self.asked:
            self.rest = [max(0, rest - 1) for rest in self.rest]
        else:  # they slept through `least` steps of which this is the last
            least = min(self.rest)
            self._all = least - 1
            self.rest = [rest - least for rest in self.rest]
        return self.asked

    def judge(self, d: int, gain: float, most: int) -> None:
        """Let a drafter whose asking does not pay rest, for `most` steps at most. gain: seconds that its
        nodes will save, less those that their rows and asking took."""
        self.gain[d] += RECENT * (gain - self.gain[d])
        self.failed[d] = 0 if self.gain[d] > 0 else self.failed[d] + 1
        if self.failed[d]:
            self.rest[d] = min(1 << min(self.failed[d], DOUBLINGS), most)

    def learn(self, draft: Draft, accept: Accept, odds: Odds) -> None:
        """From the children of the nodes that stood: one of them did, or none."""
        sent, self.sent = self.sent, []
        tokens, parents = draft.tokens.tolist(), draft.parent.tolist()
        if tokens != [token for token, _ in sent[: len(tokens)]]:
            return  # the constraint's own draft took its place
        path = {-1, *accept.path}
        for i, parent in enumerate(parents):
            if parent in path:
                kind, stood = sent[i][1], i in path
                d = kind // PER_DRAFTER
                expected = shifted(odds.chance(kind), self.shift[d])
                self.shift[d] = min(FAR, max(-FAR, self.shift[d] + RATE * (stood - expected)))
                odds.note(kind, stood)


class Merged:
    """One tree of all drafts: a node that several propose is one node with the best chance of any. Nodes with
    a faint chance are left out.

    chance: of each node to stand, its ancestors' included; by: the drafter that gave it that chance."""

    def __init__(self, mood: Mood, odds: Odds, sampled: bool) -> None:
        self.mood, self._odds, self._sampled = mood, odds, sampled
        self.token: list[int] = []
        self.parent: list[int] = []
        self.chance: list[float] = []
        self.by: list[int] = []
        self.kind: list[Kind] = []
        self._at: dict[tuple[int, int], int] = {}

    def join(self, d: int, draft: Draft, most: int) -> None:
        """Add the first `most` nodes of what drafter d proposes."""
        tokens, parents = draft.tokens.tolist(), draft.parent.tolist()
        kept, chance, kind = self._weighed(d, parents[:most], draft.score.tolist())
        if not self.token:  # nothing to be joined with
            number = {-1: -1}
            for i in kept:
                number[i] = len(self.token)
                self.token.append(tokens[i])
                self.parent.append(number[parents[i]])
            self.chance = [chance[i] for i in kept]
            self.kind = [kind[i] for i in kept]
            self.by = [d] * len(kept)
            return
        if not self._at:
            self._at = {key: j for j, key in enumerate(zip(self.parent, self.token, strict=True))}
        at = {-1: -1}
        for i in kept:
            parent = at[parents[i]]
            j = self._at.setdefault((parent, tokens[i]), len(self.token))
            at[i] = j
            if j == len(self.token):
                self.token.append(tokens[i])
                self.parent.append(parent)
                self.chance.append(chance[i])
                self.by.append(d)
                self.kind.append(kind[i])
            elif chance[i] > self.chance[j]:
                self.chance[j], self.by[j], self.kind[j] = chance[i], d, kind[i]
            if parent >= 0:  # another drafter's chance of the path: no node is likelier than its parent
                self.chance[j] = min(self.chance[j], self.chance[parent])

    def _weighed(
        self, d: int, parents: list[int], score: list[float]
    ) -> tuple[list[int], list[float], list[Kind]]:
        """Which nodes of a draft are not faint, and of every node its chance and kind."""
        known, more = self._odds.known, math.exp(self.mood.shift[d])
        base = (2 * d + self._sampled) * (PER_DRAFTER // 2)
        kept: list[int] = []
        chance: list[float] = []
        kind: list[Kind] = []
        depth: list[int] = []
        children: dict[int, int] = {}
        for i, p in enumerate(parents):
            if p < 0:
                level, above = 0, 1.0
            else:
                level, above = min(depth[p] + 1, 3), chance[p]
            depth.append(level)
            if score:
                sure = RANKS + int(10 * min(max(score[i], 0.0), 0.999))
            else:
                sure = children.get(p, 0)
                children[p] = min(sure + 1, RANKS - 1)
            of = base + 4 * sure + level
            kind.append(of)
            alone = known[of] if of in known else self._odds.chance(of)
            ratio = alone / (1.0000001 - alone) * more
            path = above * ratio / (1.0 + ratio)
            chance.append(path)
            if path >= FAINT:
                kept.append(i)
        return kept, chance, kind

    def likely(self, d: int) -> list[int]:
        """Nodes of one drafter that a trial runs: the likely ones, parents first, one in any case."""
        mine = [
            j
            for j, by in enumerate(self.by)
            if by == d and (self.parent[j] < 0 or self.by[self.parent[j]] == d)
        ]
        kept = {-1}
        for j in mine:
            if self.parent[j] in kept and (self.chance[j] >= LIKELY or len(kept) == 1):
                kept.add(j)
        return sorted(kept - {-1})

    def draft(self, nodes: Sequence[int], names: Sequence[str]) -> Draft:
        """The draft of some nodes, parents first, and note it down for `Mood.learn`."""
        number = {-1: -1} | {j: i for i, j in enumerate(nodes)}
        self.mood.sent = [(self.token[j], self.kind[j]) for j in nodes]
        by = "+".join(names[d] for d in sorted({self.by[j] for j in nodes}))
        return Draft(
            np.array([self.token[j] for j in nodes], np.int32),
            np.array([number[self.parent[j]] for j in nodes], np.int32),
            by=by,
        )


def prior(kind: Kind) -> float | None:
    """The chance of a first node of a kind never seen: what its drafter says, else less for each elder
    sibling. None for deeper nodes."""
    if kind % 4:
        return None
    sure = kind % (PER_DRAFTER // 2) // 4
    return (sure - RANKS + 0.5) / 10 if sure >= RANKS else PRIOR / (sure + 1) ** 2


def shifted(chance: float, shift: float) -> float:
    """A probability with log-odds moved by `shift`."""
    odds = chance / max(1e-9, 1.0 - chance) * math.exp(shift)
    return odds / (1.0 + odds)
