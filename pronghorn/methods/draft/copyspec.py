"""CopySpec (Dumitru et al., 2025, "CopySpec: Accelerating LLMs with Speculative Copy-and-Paste").

The whole chat, prompt and answer, is read once, token by token. The last `key` tokens are looked up; from
where they stood before the text is followed for as long as it goes on alike, and the draft is what comes next
there. Work per token is constant, whatever the length of the chat.

Departures: the most recent occurrence, not the first, because chats drift; a copy that goes well is continued
from its own place instead of being looked up anew at every step, so that among several occurrences the one
that has agreed longest is followed; the tokens themselves are the key, not a rolling hash of them; a copy may
run into the end of the text and is then read periodically; drafted tokens are judged by the verifier in use,
so sampling accepts them with the target's probability (the authors' code asks for probability 1). Where
nothing is found there is no draft: beside a draft model, that one drafts then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pronghorn.errors import MethodError
from pronghorn.methods.draft._recent import onward
from pronghorn.methods.draft._single import Fixed, Single
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Draft, Guarantee, Traits

LONGEST = 4096  # of a draft; a copy that was right for longer is not surer for it
AGREED = np.arange(2 * LONGEST)
SURE = AGREED / (AGREED + 1.0)  # of the next token, by how many agreed
SURE.setflags(write=False)


class _Copy:
    """The place in a text where it goes on as it did before."""

    def __init__(self, key: int) -> None:
        self.key = key
        self.ends: dict[tuple[int, ...], int] = {}  # `key` tokens -> where the one after them last stood
        self.n = 0  # tokens read
        self.at = -1  # the token that should come next stands here; -1: nothing is being copied
        self.run = 0  # tokens in a row that this place had right, the key's included

    def read(self, tokens: list[int]) -> None:
        key, ends, at, run = self.key, self.ends, self.at, self.run
        for end in range(max(self.n + 1, key), len(tokens) + 1):
            gram = tuple(tokens[end - key : end])
            before = ends.get(gram, -1)
            ends[gram] = end
            if at >= 0 and tokens[at] == gram[-1]:
                at += 1
                run += 1
            else:
                at, run = before, key
        self.n, self.at, self.run = len(tokens), at, run


@dataclass(frozen=True)
class Copyspec(Single, Fixed):
    key: int = 3  # tokens that must agree before anything is copied
    length: int = 10  # drafted tokens at most

    traits = Traits(Guarantee.EXACT)

    def __post_init__(self) -> None:
        for name, top in (("key", 64), ("length", LONGEST)):
            if not 1 <= getattr(self, name) <= top:
                raise MethodError(f"copyspec: {name} is from 1 to {top}, not {getattr(self, name)}")

    def _one(self, seq: Seq, depth: int, room: DraftRoom) -> Draft:
        length = min(depth, self.length)
        memory = seq.memory(self)
        if "copy" not in memory:
            memory["copy"] = _Copy(self.key)
        copy: _Copy = memory["copy"]
        tokens = seq.tokens
        copy.read(tokens)
        at = copy.at
        if at < 0:
            return Draft.empty()
        run = min(copy.run, LONGEST)
        return Draft.chain(onward(tokens, at, length), SURE[run : run + length])
