"""Drafts of several drafters as one tree whose nodes have chances, and what a sequence has taught of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pronghorn.methods.draft._value import Kind, Odds
from pronghorn.types import Accept, Draft

PRIOR = 0.5  # chance of a first child whose drafter does not say how sure it is
RATE = 0.3  # of learning what is particular to a sequence
FAR = 4.0  # log-odds that a sequence may differ from what is usual, at most
DOUBLINGS = 8  # of a rest
RANKS = 8  # of siblings that are told apart
# kinds of a drafter's nodes: greedy or sampled, by the child's rank or by how sure the drafter was, by depth
PER_DRAFTER = 2 * (RANKS + 10) * 4
LIKELY = 0.3  # chance of nodes that are worth a trial


class Mood:
    """What one sequence has taught: how far each drafter's chances are off, and who rests.

    asked: drafters that proposed for the last step."""

    def __init__(self, n: int) -> None:
        self.shift = [0.0] * n  # log-odds
        self.rest = [0] * n  # steps that a drafter is not asked in
        self.failed = [0] * n  # times in a row that it was not worth its time
        self.asked: list[int] = []
        self._sent: list[tuple[int, Kind]] = []  # token and kind of each node of the last draft
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

    def judge(self, d: int, paid: bool, most: int) -> None:
        """Let a drafter that was not worth its time rest, for `most` steps at most."""
        self.failed[d] = 0 if paid else self.failed[d] + 1
        if not paid:
            self.rest[d] = min(1 << min(self.failed[d], DOUBLINGS), most)

    def send(self, nodes: list[tuple[int, Kind]]) -> None:
        self._sent = nodes

    def learn(self, draft: Draft, accept: Accept, odds: Odds) -> None:
        """From the children of the nodes that stood: one of them did, or none."""
        sent, self._sent = self._sent, []
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
    """One tree of all drafts: a node that several propose is one node with the best chance of any.

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
        tokens, parents, score = draft.tokens.tolist(), draft.parent.tolist(), draft.score.tolist()
        chances, more = self._odds.known, math.exp(self.mood.shift[d])
        base = (2 * d + self._sampled) * (PER_DRAFTER // 2)
        at: list[int] = []
        depth: list[int] = []
        children: dict[int, int] = {}
        for i, (token, p) in enumerate(zip(tokens[:most], parents, strict=False)):
            level = depth[p] + 1 if p >= 0 else 1
            depth.append(level)
            if score:
                sure = RANKS + int(10 * min(max(score[i], 0.0), 0.999))
            else:
                sure = children.get(p, 0)
                children[p] = min(sure + 1, RANKS - 1)
            kind = base + 4 * sure + min(level, 4) - 1
            chance = chances[kind] if kind in chances else self._odds.chance(kind)
            odds = chance / (1.0000001 - chance) * more
            chance = odds / (1.0 + odds)
            parent = at[p] if p >= 0 else -1
            if parent >= 0:
                chance *= self.chance[parent]
            key = parent, token
            j = self._at.get(key, -1)
            if j < 0:
                j = self._at[key] = len(self.token)
                self.token.append(token)
                self.parent.append(parent)
                self.chance.append(chance)
                self.by.append(d)
                self.kind.append(kind)
            elif chance > self.chance[j]:
                self.chance[j], self.by[j], self.kind[j] = chance, d, kind
            at.append(j)

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
        self.mood.send([(self.token[j], self.kind[j]) for j in nodes])
        by = "+".join(names[d] for d in sorted({self.by[j] for j in nodes}))
        return Draft(
            np.array([self.token[j] for j in nodes], np.int32),
            np.array([number[self.parent[j]] for j in nodes], np.int32),
            by=by,
        )


def prior(kind: Kind) -> float:
    """The chance of a node of a kind never seen: what its drafter says, else less for each elder sibling."""
    sure = kind % (PER_DRAFTER // 2) // 4
    return (sure - RANKS + 0.5) / 10 if sure >= RANKS else PRIOR / (sure + 1) ** 2


def shifted(chance: float, shift: float) -> float:
    """A probability with log-odds moved by `shift`."""
    odds = chance / max(1e-9, 1.0 - chance) * math.exp(shift)
    return odds / (1.0 + odds)
