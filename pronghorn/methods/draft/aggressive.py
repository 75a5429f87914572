"""Input-guided aggressive decoding (Ge et al., 2022, "Lossless Acceleration for Seq2seq Generation with
Aggressive Decoding"), for answers that are mostly their input: correction, rewriting, renaming.

The draft is the source from the place where the answer stands in it. Where the answer leaves the source, the
place is found again: within the next `near` source tokens one equal token is enough; otherwise the last
tokens of the answer must stand at exactly one place of what is left of the source, or of all of it when
nothing of the rest fits.

The source is the whole prompt. A drafter sees tokens, not roles, and need not guess where a document begins:
the first tokens of the answer find it, and the instruction around it does no harm. Departures: the paper
drafts from the first token on, which needs to know where the source begins; it realigns by unique matches
only, which after a changed word waits longer than needed; three tokens that agree are enough though they
stand at several places (the first of these after the place that was left; at the start of an answer the last
one, because the newest version of a text stands last); the draft ends after `length` tokens, for rows are not
free. The paper's generalised variant (GAD) drafts with a model trained for it and is not here.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from pronghorn.errors import MethodError
from pronghorn.methods.draft._single import Fixed, Single
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Draft, Guarantee, Traits

PLACES = 64  # of one token that are looked at
ENOUGH = 3  # tokens that agree at several places


class _Place:
    """Where the answer stands in its source."""

    def __init__(self, source: list[int], near: int) -> None:
        self.source, self.near = source, near
        self.places: dict[int, list[int]] = {}  # token -> where it stands, ascending
        for i, token in enumerate(source):
            self.places.setdefault(token, []).append(i)
        self.n = 0  # answer tokens read
        self.at = -1  # the source token that should come next; -1: not known
        self.run = 0  # tokens in a row that agreed
        self.left = -1  # where the source was left; -1: it was not entered yet
        self.open: list[int] = []  # places behind the last `size` answer tokens
        self.size = 0

    def read(self, tokens: list[int], n_prompt: int) -> None:
        for i in range(n_prompt + self.n, len(tokens)):
            self._read(tokens[i])
        self.n = len(tokens) - n_prompt

    def _read(self, token: int) -> None:
        source = self.source
        if self.at >= 0:
            if self.at < len(source) and source[self.at] == token:
                self.at += 1
                self.run += 1
                return
            if self.run > 1:  # else it was entered at the wrong place
                self.left = self.at
            self.at, self.open, self.size = -1, [], 0
        if self.left >= 0 and token in source[self.left : self.left + self.near]:
            self.at, self.run = source.index(token, self.left) + 1, 1
            return
        self.open = [p + 1 for p in self.open if p < len(source) and source[p] == token]
        self.size += 1
        if not self.open:
            self.open, self.size = self._after(token), 1
        if len(self.open) == 1 or (self.open and self.size >= ENOUGH):
            self.at, self.run = self.open[-1 if self.left < 0 else 0], self.size

    def _after(self, token: int) -> list[int]:
        """Places behind `token`: the next ones from where the source was left, else any."""
        places = self.places.get(token, [])
        if self.left < 0:
            return [p + 1 for p in places[-PLACES:]]
        first = bisect_left(places, self.left)
        return [p + 1 for p in places[first : first + PLACES] or places[:PLACES]]


@dataclass(frozen=True)
class Aggressive(Single, Fixed):
    length: int = 16  # drafted tokens at most
    near: int = 8  # source tokens after a difference among which one equal token shows the place

    traits = Traits(Guarantee.EXACT)

    def __post_init__(self) -> None:
        if not 1 <= self.length <= 4096:
            raise MethodError(f"aggressive: length is from 1 to 4096, not {self.length}")
        if not 0 <= self.near <= 1024:
            raise MethodError(f"aggressive: near is from 0 to 1024, not {self.near}")

    def _one(self, seq: Seq, depth: int, room: DraftRoom) -> Draft:
        memory = seq.memory(self)
        if "place" not in memory:
            memory["place"] = _Place(seq.tokens[: seq.n_prompt], self.near)
        place: _Place = memory["place"]
        place.read(seq.tokens, seq.n_prompt)
        if place.at < 0:
            return Draft.empty()
        out = place.source[place.at : place.at + min(depth, self.length)]
        agreed = (place.run + np.arange(len(out))) ** 2.0  # one token agrees by chance, several hardly do
        return Draft.chain(out, agreed / (agreed + 2.0))
