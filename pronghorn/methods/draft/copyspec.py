"""CopySpec (Dumitru et al., 2025, "CopySpec: Accelerating LLMs with Speculative Copy-and-Paste").

The whole chat, prompt and answer, is read once, token by token. A rolling hash of the last `key` tokens finds
where they stood before; from then on the text is followed there for as long as it goes on alike, and the
draft is what comes next at that place. Work per token is constant, whatever the length of the chat.

Departures: the most recent occurrence, not the first, because chats drift; a copy that goes well is continued
from its own place instead of being looked up anew at every step, so that among several occurrences the one
that has agreed longest is followed; a hash is only a hint, the tokens are compared; a copy may run into the
end of the text and is then read periodically; drafted tokens are judged by the verifier in use, so sampling
accepts them with the target's probability (the authors' code asks for probability 1). Where nothing is found
there is no draft: beside a draft model, that one drafts then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pronghorn.errors import MethodError
from pronghorn.methods.draft._single import Fixed, Single
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Draft, Guarantee, Traits

PRIME = (1 << 61) - 1  # hashes are numbers below it
BASE = 1_000_003


class _Copy:
    """The place in a text where it goes on as it did before."""

    def __init__(self, key: int) -> None:
        self.key = key
        self.drop = pow(BASE, key, PRIME)
        self.hash = 0  # of the last `key` tokens
        self.ends: dict[int, int] = {}  # hash -> where the token after its last occurrence stands
        self.n = 0  # tokens read
        self.at = -1  # the token that should come next stands here; -1: nothing is being copied
        self.run = 0  # tokens in a row that this place had right, the key's included

    def read(self, tokens: list[int]) -> None:
        key, ends, hashed, drop = self.key, self.ends, self.hash, self.drop
        for i in range(self.n, len(tokens)):
            token = tokens[i]
            if i >= key:
                ends[hashed] = i
            hashed = (hashed * BASE + token + 1) % PRIME
            if i >= key:
                hashed = (hashed - (tokens[i - key] + 1) * drop) % PRIME
            if self.at >= 0 and tokens[self.at] == token:
                self.at += 1
                self.run += 1
                continue
            self.at = -1
            if i + 1 >= key:
                end = ends.get(hashed, -1)
                if end >= 0 and tokens[end - key : end] == tokens[i + 1 - key : i + 1]:
                    self.at, self.run = end, key
        self.n, self.hash = len(tokens), hashed


@dataclass(frozen=True)
class Copyspec(Single, Fixed):
    key: int = 3  # tokens that must agree before anything is copied
    length: int = 10  # drafted tokens at most

    traits = Traits(Guarantee.EXACT)

    def __post_init__(self) -> None:
        for name, top in (("key", 64), ("length", 4096)):
            if not 1 <= getattr(self, name) <= top:
                raise MethodError(f"copyspec: {name} is from 1 to {top}, not {getattr(self, name)}")

    def _one(self, seq: Seq, depth: int, room: DraftRoom) -> Draft:
        length = min(depth, self.length)
        copy: _Copy = seq.memory(self).setdefault("copy", _Copy(self.key))
        tokens = seq.tokens
        copy.read(tokens)
        at = copy.at
        if at < 0:
            return Draft.empty()
        out = tokens[at : at + length]
        while len(out) < length:  # the text from `at` on is repeated for ever
            out += out[: length - len(out)]
        agreed = copy.run + np.arange(length)
        return Draft.chain(out)._replace(score=agreed / (agreed + 1.0))
