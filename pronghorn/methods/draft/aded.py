"""Adaptive draft-verification (Liu et al., 2024, arXiv 2407.12021).

A table holds, for pairs of tokens, weights of what the target says after them, and is moved towards the
target by every row that was kept. A draft is made by a tree search over the table: descents weigh what is
likely against what was not looked at (PUCT), and the nodes visited most are drafted.

Departures and choices: the target's probabilities are not at hand, its 8 likeliest tokens are, so half of a
row's new weight goes to the token that was taken and half to those 8, halved from each to the next; old
weight fades by half each time a row is moved. The paper starts from a corpus; here every text has, beside the
common table, counts of its own, prompt included, which weigh as much and end with it. Rows hold 16 tokens,
the lightest give way; the table holds `rows` of them, the one moved longest ago gives way (some 1.5 KB each).
A node's value in the search is the chance of the path to it. Only tokens that stand move the table.

The table belongs to the instance: all sequences of an engine share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.methods.draft._puct import Row, search
from pronghorn.methods.draft._single import Single
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Accept, Draft, Guarantee, Traits

KEPT = 16  # tokens of a row
FADE = 0.5  # of a row's weights when it is moved
TAKEN = 0.5  # new weight of the token that was taken; the rest goes to the likeliest ones
DOUBT = 0.25  # weight of what a row does not know
WIDTH = 8  # children of a node

Pair = tuple[int, int]


@dataclass(frozen=True)
class Aded(Single):
    nodes: int = 16  # nodes of the tree
    depth: int = 6  # levels of the tree
    simulations: int = 32  # descents of the search
    explore: float = 1.0  # weight of what was not looked at
    rows: int = 16384  # pairs of tokens that the table holds

    traits = Traits(Guarantee.EXACT, taps=("top8",))

    def __post_init__(self) -> None:
        for name, top in (("nodes", 1024), ("depth", 64), ("simulations", 4096), ("rows", 1 << 24)):
            if not 1 <= getattr(self, name) <= top:
                raise MethodError(f"aded: {name} is from 1 to {top}, not {getattr(self, name)}")
        if not 0 < self.explore <= 100:
            raise MethodError(f"aded: explore is above 0 and at most 100, not {self.explore}")

    @cached_property
    def _table(self) -> dict[Pair, dict[int, float]]:
        """Rows in the order in which they were last moved."""
        return {}

    def _one(self, seq: Seq, depth: int, room: DraftRoom) -> Draft:
        own = self._counts(seq)
        if len(seq.tokens) < 2:
            return Draft.empty()
        seen: dict[Pair, Row] = {}

        def row(pair: Pair) -> Row:
            if pair not in seen:
                seen[pair] = self._row(self._table.get(pair, {}), own.get(pair, {}))
            return seen[pair]

        last = seq.tokens[-2], seq.tokens[-1]
        found = search(last, row, self.simulations, min(depth, self.depth), self.explore, self.nodes)
        return Draft(
            np.asarray(found.token, np.int32), np.asarray(found.parent, np.int32),
            score=np.asarray(found.chance),
        )  # fmt: skip

    def _row(self, common: dict[int, float], own: dict[int, int]) -> Row:
        """Chances of the likeliest tokens; of equals the smaller token comes first."""
        total = DOUBT + sum(common.values())
        weight = common
        if own:
            n = sum(own.values())
            weight = common | {t: common.get(t, 0.0) + c / n for t, c in own.items()}
            total += 1.0
        best = sorted(weight.items(), key=lambda x: (-x[1], x[0]))[:WIDTH]
        return [(t, w / total) for t, w in best]

    def _counts(self, seq: Seq) -> dict[Pair, dict[int, int]]:
        """What came after each pair of tokens of the text, and how often."""
        memory, tokens = seq.memory(self), seq.tokens
        counts: dict[Pair, dict[int, int]] = memory.setdefault("counts", {})
        for i in range(memory.get("done", 2), len(tokens)):
            row = counts.setdefault((tokens[i - 2], tokens[i - 1]), {})
            row[tokens[i]] = row.get(tokens[i], 0) + 1
        memory["done"] = max(2, len(tokens))
        return counts

    def observe(
        self, seqs: Sequence[Seq], drafts: Sequence[Draft], accepts: Sequence[Accept],
        taps: Sequence[dict[str, NDArray[Any]]],
    ) -> None:  # fmt: skip
        for seq, draft, accept, tap in zip(seqs, drafts, accepts, taps, strict=True):
            added = [*(int(draft.tokens[i]) for i in accept.path), accept.bonus]
            n = len(seq.tokens) - len(added)
            if n < 2 or seq.tokens[n:] != added:
                continue  # the text was cut at its end, or is one token long
            top = np.asarray(tap["top8"])
            for i, row in enumerate([0, *(j + 1 for j in accept.path)]):
                self._move((seq.tokens[n + i - 2], seq.tokens[n + i - 1]), added[i], top[row].tolist())

    def _move(self, pair: Pair, taken: int, top: list[int]) -> None:
        """Move a row towards what the target said."""
        table = self._table
        row = {t: w * FADE for t, w in table.pop(pair, {}).items()}
        row[taken] = row.get(taken, 0.0) + TAKEN
        share = 1.0 - TAKEN
        for t in top:
            share /= 2
            if t >= 0:
                row[t] = row.get(t, 0.0) + share
        if len(row) > KEPT:
            row = dict(sorted(row.items(), key=lambda x: (-x[1], x[0]))[:KEPT])
        table[pair] = row
        if len(table) > self.rows:
            del table[next(iter(table))]
