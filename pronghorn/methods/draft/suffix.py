"""SuffixDecoding (Oliaro et al., 2024, arXiv 2411.04975).

The longest end of the text that stood somewhere before, in this request's prompt and answer or in the answers
of earlier requests, says what may follow: what came after it there, as a tree, most frequent first.

The chance of a token is its share of what came after its parent, times (m + d) / (m + d + 1), where m tokens
matched and d drafted ones lead to it: a run that was seen once is no certainty, and a long one is nearly one.
Where the text always went on alike, L tokens stand with chance m / (m + L), so the draft's length grows with
the match, as in the paper. Paths are drafted down to the chance `least`, `nodes` tokens at most.

Departures: one automaton of all substrings for each text collection (`_native.Suffixes`) in place of suffix
trees of bounded depth, so a match has any length; the longest match alone is followed, where the paper also
tries shorter ones; shares are discounted as above where the paper bounds the draft's length by the match's.
Of this request and the earlier ones the tree with the largest sum of chances is taken, as in the paper.

Earlier answers belong to the instance: all requests of an engine share them, the newest `memory` tokens or at
least half as many. They change what is drafted and so the time that an answer takes, never the answer; where
even that must not be seen by others, memory=0 keeps requests apart. An answer joins them when it is finished,
a long one in pieces before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.ops.cpu._native import Suffixes
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Accept, Draft, Guarantee, Traits

CONTEXT = 8  # tokens before a piece of an answer that are kept with it
PIECE = 256  # tokens of an unfinished answer that join the earlier ones
LONG = 32  # of a match; what it is longer makes no difference
ENOUGH = 8  # a match in the own text after which earlier answers are not asked


class _Earlier:
    """Answers, in two parts of `half` tokens: when the newer one is full, the older one goes."""

    def __init__(self, half: int) -> None:
        self.half = half
        self.parts = [Suffixes(), Suffixes()]
        self._told: dict[Seq, int] = {}  # running sequences: tokens of theirs that need no more telling

    def watch(self, seq: Seq, n: int) -> None:
        """A sequence whose answer goes on from its first n tokens."""
        self._told.setdefault(seq, n)

    def gather(self) -> None:
        """Take in what is finished or long enough."""
        for seq, told in list(self._told.items()):
            n = len(seq.tokens)
            if seq.finish or n - told >= PIECE:
                self.add(seq.tokens[max(0, told - CONTEXT) :])
                self._told[seq] = n
            if seq.finish:
                del self._told[seq]

    def add(self, text: list[int]) -> None:
        text = text[-self.half :]
        newer = self.parts[1]
        if len(newer) + len(text) > self.half:
            newer = Suffixes()
            self.parts = [self.parts[1], newer]
        newer.begin()
        newer.extend(text)


@dataclass(frozen=True)
class Suffix:
    nodes: int = 16  # drafted tokens at most
    least: float = 0.1  # chance of a path that is still drafted
    memory: int = 1 << 18  # tokens of earlier answers that are kept; 0: requests learn nothing from others

    traits = Traits(Guarantee.EXACT)

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= 1024:
            raise MethodError(f"suffix: nodes is from 1 to 1024, not {self.nodes}")
        if not 0 < self.least < 1:
            raise MethodError(f"suffix: least lies between 0 and 1, and is {self.least}")
        if self.memory and not 256 <= self.memory <= 1 << 28:
            raise MethodError(f"suffix: memory is 0, or from 256 to {1 << 28}, not {self.memory}")

    @cached_property
    def _earlier(self) -> _Earlier:
        return _Earlier(self.memory // 2)

    def propose(self, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom) -> list[Draft]:
        if self.memory:
            self._earlier.gather()
        most = min(self.nodes, room.rows)
        return [self._one(s, depth, most) for s, depth in zip(seqs, k, strict=True)]

    def observe(
        self, seqs: Sequence[Seq], drafts: Sequence[Draft], accepts: Sequence[Accept],
        taps: Sequence[dict[str, NDArray[Any]]],
    ) -> None:  # fmt: skip
        if self.memory:
            for seq, accept in zip(seqs, accepts, strict=True):
                self._earlier.watch(seq, max(seq.n_prompt, len(seq.tokens) - len(accept.path) - 1))

    def _one(self, seq: Seq, depth: int, most: int) -> Draft:
        if depth < 1 or most < 1:
            return Draft.empty()
        tokens, memory = seq.tokens, seq.memory(self)
        if "own" not in memory:
            memory["own"] = Suffixes()
        own: Suffixes = memory["own"]
        own.extend(tokens[len(own) :])
        others = self._earlier.parts if self.memory else []
        drafted = own.likeliest(others, tokens[-LONG:], most, depth, self.least, LONG, ENOUGH)
        return Draft(drafted[0], drafted[1], score=drafted[2])
