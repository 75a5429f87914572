"""Prompt lookup (Saxena, 2023, "Prompt Lookup Decoding").

The longest suffix of the text, `max_ngram` tokens down to `min_ngram`, that has occurred before is
followed again: the draft is what came after its most recent earlier occurrence.

Departures: the most recent occurrence, not the earliest, because texts drift; an occurrence that ends
less than `length` tokens before the text does is used too, its continuation read periodically; no scan,
but a map from n-gram to its last end that grows with the text.
"""

from __future__ import annotations

from dataclasses import dataclass

from pronghorn.errors import MethodError
from pronghorn.methods.draft._recent import onward
from pronghorn.methods.draft._single import Fixed, Single
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Draft, Guarantee, Traits


class _Ends:
    """Where the n-grams of one size ended last."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ends: dict[tuple[int, ...], int] = {}
        self.n = 0  # tokens read
        self.last = -1  # the end before it of the n-gram that the text ends with; -1: it is new

    def read(self, tokens: list[int]) -> int:
        """`last`, for a text that begins with what was read before."""
        n, size, ends = len(tokens), self.size, self.ends
        if n >= size and n > self.n:
            for end in range(max(self.n + 1, size), n):
                ends[tuple(tokens[end - size : end])] = end
            gram = tuple(tokens[n - size :])
            self.last = ends.get(gram, -1)
            ends[gram] = self.n = n
        return self.last


@dataclass(frozen=True)
class PromptLookup(Single, Fixed):
    max_ngram: int = 3  # longest suffix to look for
    min_ngram: int = 2  # shortest; one token recurs everywhere, and each wrong row costs time on a CPU
    length: int = 10  # drafted tokens at most

    traits = Traits(Guarantee.EXACT)

    def __post_init__(self) -> None:
        if not 1 <= self.min_ngram <= self.max_ngram:
            raise MethodError(
                f"prompt-lookup: min_ngram is from 1 to max_ngram ({self.max_ngram}), not {self.min_ngram}"
            )
        if self.max_ngram > 64:
            raise MethodError(f"prompt-lookup: max_ngram is from 1 to 64, not {self.max_ngram}")
        if not 1 <= self.length <= 4096:
            raise MethodError(f"prompt-lookup: length is from 1 to 4096, not {self.length}")

    def _one(self, seq: Seq, depth: int, room: DraftRoom) -> Draft:
        tokens, length = seq.tokens, min(depth, self.length)
        memory = seq.memory(self)
        if "ends" not in memory:
            memory["ends"] = [_Ends(size) for size in range(self.max_ngram, self.min_ngram - 1, -1)]
        for end in [ends.read(tokens) for ends in memory["ends"]]:
            if end >= 0:
                return Draft.chain(onward(tokens, end, length))
        return Draft.empty()
