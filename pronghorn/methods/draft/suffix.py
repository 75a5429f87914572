"""SuffixDecoding (Oliaro et al., 2024, arXiv 2411.04975).

The end of the text is looked for in this request, prompt and answer, and in the answers of earlier requests.
What came after it there, most often first, is the draft: a tree where it went on in several ways, a chain
where in one.

The chance of a token is its share of the places found, a place counting four times as much for every token
that it matches further, against one more token never seen there: with w of the weight W behind a token and a
longest match of m tokens, w / (W + 1 / m). A drafted token lengthens the match. So a single place that
matches m tokens is followed with chances m / (m + 1), (m + 1) / (m + 2), ..., and a draft of L tokens stands
with m / (m + L): its length grows with its match, as in the paper. Nodes are drafted by falling chance of
their path, down to `least` and `nodes` at most.

Departures: the paper counts every occurrence in a suffix tree and takes the match length and the tree, of
this request or of earlier ones, with the largest sum of chances; here the `places` newest occurrences of the
longest match are counted (`_suffixes`), of both together where this request's is shorter than 8 tokens.
Shares are discounted, because a run seen once is no certainty. A place that the text's end overlaps is read
periodically.

Earlier answers belong to the instance: all requests of an engine share them, `memory` tokens at most, the
oldest answer gives way. They change what is drafted and so the time that an answer takes, never the answer;
where even that must not be seen by others, memory=0 keeps requests apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.methods.draft._suffixes import SIZES, Place, Suffixes
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Accept, Draft, Guarantee, Traits

CONTEXT = SIZES[0]  # tokens before an answer that are kept with it
CLOSER = 4.0  # a place weighs so much more for every token that it matches further
FAR = 6  # places that match so many tokens less than the best are not counted


class _Earlier:
    """Answers, `most` tokens in all."""

    def __init__(self, most: int) -> None:
        self.most, self.n = most, 0
        self.index = Suffixes()
        self._numbers = 0

    def add(self, number: int, context: Sequence[int], tokens: Sequence[int]) -> int:
        """Append to an answer, or begin one where there is none of that number; returns its number."""
        texts = self.index.texts
        if number not in texts:
            self._numbers += 1
            number = self._numbers
            self.index.add(number, list(context))
            self.n += len(context)
        texts[number].extend(tokens)
        self.index.grown(number)
        self.n += len(tokens)
        while self.n > self.most:
            oldest = next(iter(texts))
            self.n -= len(texts[oldest])
            self.index.drop(oldest)
        return number


@dataclass(frozen=True)
class Suffix:
    nodes: int = 16  # drafted tokens at most
    least: float = 0.15  # chance of a path that is still drafted
    places: int = 8  # newest places that are counted
    memory: int = 1 << 17  # tokens of earlier answers that are kept; 0: requests learn nothing from others

    traits = Traits(Guarantee.EXACT)

    def __post_init__(self) -> None:
        for name, low, top in (("nodes", 1, 1024), ("places", 1, 1024), ("memory", 0, 1 << 28)):
            if not low <= getattr(self, name) <= top:
                raise MethodError(f"suffix: {name} is from {low} to {top}, not {getattr(self, name)}")
        if not 0 < self.least < 1:
            raise MethodError(f"suffix: least lies between 0 and 1, and is {self.least}")

    @cached_property
    def _earlier(self) -> _Earlier:
        return _Earlier(self.memory)

    def propose(self, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom) -> list[Draft]:
        most = min(self.nodes, room.rows)
        return [self._one(s, depth, most) for s, depth in zip(seqs, k, strict=True)]

    def observe(
        self, seqs: Sequence[Seq], drafts: Sequence[Draft], accepts: Sequence[Accept],
        taps: Sequence[dict[str, NDArray[Any]]],
    ) -> None:  # fmt: skip
        if not self.memory:
            return
        for seq, accept in zip(seqs, accepts, strict=True):
            memory, tokens = seq.memory(self), seq.tokens
            start = memory.get("told", len(tokens) - min(len(accept.path) + 1, seq.n_new))
            context = tokens[max(0, start - CONTEXT) : start]
            memory["answer"] = self._earlier.add(memory.get("answer", 0), context, tokens[start:])
            memory["told"] = len(tokens)

    def _one(self, seq: Seq, depth: int, most: int) -> Draft:
        if depth < 1 or most < 1:
            return Draft.empty()
        tokens, memory = seq.tokens, seq.memory(self)
        own: Suffixes | None = memory.get("own")
        if own is None:
            own = memory["own"] = Suffixes()
            own.add(0, tokens)
        else:
            own.grown(0)
        found = own.find(tokens, self.places)
        if self.memory and (not found or found[0][0] < SIZES[0]):
            found += self._earlier.index.find(tokens, self.places)
        return self._tree(found, tokens, depth, most) if found else Draft.empty()

    def _tree(self, found: list[Place], own: list[int], depth: int, most: int) -> Draft:
        """Continuations of the places as a tree, likeliest path first."""
        best = max(found)[0] if len(found) > 1 else found[0][0]
        at = [(CLOSER ** (match - best), text, i) for match, text, i in found if best - match < FAR]
        tokens: list[int] = []
        parents: list[int] = []
        scores: list[float] = []
        heap: list[tuple[float, int, int, int, float, int, list[tuple[float, list[int], int]]]] = []
        pushed, node, level, chance, alike = 0, -1, 0, 1.0, 0
        while True:
            if not heap and len(at) != alike and level < depth:
                alike = len(at)
                weight = sum(w for w, _, _ in at)
                for token in _common(at, level, min(depth - level, most - len(tokens)), own):
                    share = weight / (weight + 1.0 / (best + level))
                    if chance * share < self.least:
                        return _draft(tokens, parents, scores)
                    chance, level = chance * share, level + 1
                    tokens.append(token)
                    parents.append(node)
                    scores.append(share)
                    node = len(tokens) - 1
            if level < depth and len(tokens) < most:
                total = 1.0 / (best + level)
                ways: dict[int, list[tuple[float, list[int], int]]] = {}
                for place in at:
                    weight, text, start = place
                    i = start + level
                    if i >= len(text):
                        if text is not own:
                            continue
                        i = start + level % (len(text) - start)
                    total += weight
                    ways.setdefault(text[i], []).append(place)
                least = self.least / chance * total
                for token, places in ways.items():
                    weight = sum(w for w, _, _ in places) if len(places) > 1 else places[0][0]
                    if weight >= least:
                        share = weight / total
                        pushed += 1
                        heappush(heap, (-chance * share, pushed, node, token, share, level + 1, places))
            if not heap or len(tokens) >= most:
                return _draft(tokens, parents, scores)
            minus, _, parent, token, share, level, at = heappop(heap)
            chance, node = -minus, len(tokens)
            tokens.append(token)
            parents.append(parent)
            scores.append(share)


def _common(at: list[tuple[float, list[int], int]], level: int, n: int, own: list[int]) -> list[int]:
    """The next n tokens of all places where they are the same at each, else nothing."""
    out: list[int] = []
    for _, text, start in at:
        piece = text[start + level : start + level + n]
        if len(piece) < n and text is own:  # its end goes on as the text does from `start` on
            period = text[start:]
            while len(piece) < n:
                shift = (level + len(piece)) % len(period)
                piece += period[shift : shift + n - len(piece)]
        if out and piece != out:
            return []
        out = piece
    return out


def _draft(tokens: list[int], parents: list[int], scores: list[float]) -> Draft:
    score = np.array(scores, np.float64)
    return Draft(np.array(tokens, np.int32), np.array(parents, np.int32), score=score)
