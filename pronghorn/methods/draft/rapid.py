"""The drafter of RAPID (Chen et al., 2025, arXiv 2502.20330): for a long prompt, drafts come from a model
that sees only the parts of it that matter, so that a draft reads few rows of KV.

The model is by default the answering one, whose weights are shared, with rows of its own for the short
context. Drafts end after `length` tokens or with one less likely than `sure` (10 and 0.4 as in the paper).

Departures: no embedding model retrieves here. The prompt's pieces of `chunk` tokens are ranked by the tokens
that they have in common with its last `query`, rare ones counting more (BM25 over tokens); the best are kept
in their order, with the prompt's first tokens, where templates begin, and its end. The paper also moves the
answer's distribution towards the drafter's, which changes answers; that is not done: drafts only save time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pronghorn.companion import Head
from pronghorn.errors import MethodError
from pronghorn.methods.draft._companion import Style, chains, check, companion
from pronghorn.methods.draft._single import Fixed
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Draft, Guarantee, Traits

K1, B = 1.2, 0.75  # of BM25


@dataclass(frozen=True)
class Rapid(Fixed):
    model: str = "self"  # the model that drafts
    budget: int = 1024  # tokens of the short context, its beginning and end included
    chunk: int = 128  # tokens of a piece
    query: int = 64  # tokens at the prompt's end that pieces are compared with
    first: int = 16  # tokens at its beginning that stay
    least: int = 2048  # a shorter prompt gets no drafts: reading all of it costs little
    length: int = 10  # drafted tokens at most
    sure: float = 0.4  # a draft ends with a token less likely than this
    sample: bool = False  # draw tokens at random and hand their distributions on, for verifiers that reject

    def __post_init__(self) -> None:
        check("rapid", self.length, sure=self.sure)
        if min(self.chunk, self.query) < 1 or self.first < 0 or self.least < 0:
            raise MethodError("rapid: chunk and query are from 1, first and least from 0")
        if self.budget < self.first + self.query:
            raise MethodError(f"rapid: budget is at least first + query, {self.first + self.query}")

    @property
    def traits(self) -> Traits:
        return Traits(Guarantee.EXACT, models=(self.model,))

    def propose(self, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom) -> list[Draft]:
        style = Style(self.length, sure=self.sure, sample=self.sample)
        deep = [d if s.n_prompt >= self.least else 0 for s, d in zip(seqs, k, strict=True)]
        heads = [self._head(s) if d else ((), 0) for s, d in zip(seqs, deep, strict=True)]
        return chains(companion(room, self.model), seqs, deep, room, style, heads)

    def _head(self, seq: Seq) -> Head:
        memory = seq.memory(self)
        if "head" not in memory:
            ids = self._retrieved(seq.tokens[: seq.n_prompt])
            memory["head"] = (ids, seq.n_prompt) if len(ids) < seq.n_prompt else ((), 0)
        head: Head = memory["head"]
        return head

    def _retrieved(self, prompt: list[int]) -> tuple[int, ...]:
        """The prompt's beginning, its best pieces in order, and its end."""
        if len(prompt) <= self.budget:
            return tuple(prompt)
        end = len(prompt) - self.query
        asked = set(prompt[end:])
        starts = range(self.first, end, self.chunk)
        pieces = [prompt[a : min(a + self.chunk, end)] for a in starts]
        counts = [Counter(t for t in piece if t in asked) for piece in pieces]
        having = Counter(t for c in counts for t in c)
        mean = sum(map(len, pieces)) / len(pieces)

        def value(i: int) -> float:
            norm = K1 * (1 - B + B * len(pieces[i]) / mean)
            return sum(
                math.log(1 + (len(pieces) - having[t] + 0.5) / (having[t] + 0.5)) * n * (K1 + 1) / (n + norm)
                for t, n in counts[i].items()
            )

        left = self.budget - self.first - self.query
        kept = []
        for i in sorted(range(len(pieces)), key=lambda i: (-value(i), -i)):
            if len(pieces[i]) <= left:
                kept.append(i)
                left -= len(pieces[i])
        middle = [t for i in sorted(kept) for t in pieces[i]]
        return (*prompt[: self.first], *middle, *prompt[end:])
