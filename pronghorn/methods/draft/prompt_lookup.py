"""Prompt lookup (Saxena, 2023, "Prompt Lookup Decoding").

The longest suffix of the text, `max_ngram` tokens down to `min_ngram`, that has occurred before is
followed again: the draft is what came after its most recent earlier occurrence.

Departures: the most recent occurrence, not the earliest, because texts drift; an occurrence that ends
less than `length` tokens before the text does is used too, its continuation read periodically; no scan,
but a map from n-gram to its last end that grows with the text (ops/cpu/ngrams.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass

from pronghorn.errors import MethodError
from pronghorn.methods.draft._single import Fixed, Single
from pronghorn.ops.cpu._native import Ngrams
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Draft, Guarantee, Traits


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

    def right(self, seq: Seq, n: int) -> int:
        return self._ngrams(seq).right(n)

    def _one(self, seq: Seq, depth: int, room: DraftRoom) -> Draft:
        return Draft.chain(self._ngrams(seq).onward(min(depth, self.length)))

    def _ngrams(self, seq: Seq) -> Ngrams:
        memory = seq.memory(self)
        if "ngrams" not in memory:
            memory["ngrams"] = Ngrams(self.max_ngram, self.min_ngram)
        ngrams: Ngrams = memory["ngrams"]
        ngrams.extend(seq.tokens[len(ngrams) :])
        return ngrams
