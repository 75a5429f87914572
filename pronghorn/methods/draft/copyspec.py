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
from pronghorn.methods.draft._single import Fixed, Single
from pronghorn.ops.cpu._native import Ngrams
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Draft, Guarantee, Traits

LONGEST = 4096  # of a draft; a copy that was right for longer is not surer for it
AGREED = np.arange(2 * LONGEST)
SURE = AGREED / (AGREED + 1.0)  # of the next token, by how many agreed
SURE.setflags(write=False)


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
        memory = seq.memory(self)
        if "ngrams" not in memory:
            memory["ngrams"] = Ngrams(self.key, self.key)
        ngrams: Ngrams = memory["ngrams"]
        ngrams.extend(seq.tokens[len(ngrams) :])
        tokens, run = ngrams.copied(min(depth, self.length))
        run = min(run, LONGEST)
        return Draft.chain(tokens, SURE[run : run + len(tokens)])
