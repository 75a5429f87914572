"""Jacobi decoding (Song et al., 2021; Santilli et al., 2023) and, with it, the drafts of Speculative Jacobi
Decoding (Teng et al., 2024, arXiv 2410.01699).

The next `length` tokens are guessed, and every step runs all guesses at once: what the target finds likeliest
behind each becomes the next guess one place further. Guesses that the verifier lets stand are text; those
after the first wrong one stay, refined, for the next step.

New places at the end begin with the token that the target last found likeliest after the token before, from
any row of any sequence; else the one that follows it in the prompt; else that token again, which is the
paper's "left neighbour".

Departures: where the token before a guess has changed since the guess was made, what the target last said
after the new one takes its place, if it is known: the plain iteration keeps the old, and on text hardly one
of those stands. A guess is the target's likeliest token, not a draw. The paper draws because its criterion
accepts with min(1, p/q); under `match`, a guess stands with the target's probability of it, for which the
likeliest is best, at every temperature. So the guesses carry no q. What rows said belongs to the instance:
all sequences of an engine share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.methods.draft._single import Single
from pronghorn.methods.draft._trail import Trail
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Accept, Draft, Guarantee, Traits

TRAILS = 4096  # texts whose guesses are remembered
SURE = 0.5  # of a guess that was just refined; every time that it is confirmed halves the way to MOST
MOST = 0.95

Guess = tuple[int, float]  # a token, and how sure it is


@dataclass(frozen=True)
class Jacobi(Single):
    length: int = 8  # guessed tokens

    traits = Traits(Guarantee.EXACT, taps=("top1",))

    def __post_init__(self) -> None:
        if not 1 <= self.length <= 4096:
            raise MethodError(f"jacobi: length is from 1 to 4096, not {self.length}")

    @cached_property
    def _trail(self) -> Trail[tuple[Guess, ...]]:
        return Trail(TRAILS)

    @cached_property
    def _after(self) -> dict[int, tuple[int, int]]:
        """Token -> the token likeliest after it, and how often in a row it was."""
        return {}

    def _learn(self, token: int, follows: int) -> None:
        if follows >= 0:
            before, times = self._after.get(token, (-1, 0))
            self._after[token] = (follows, times + 1 if before == follows else 1)

    def _next(self, token: int, otherwise: int) -> Guess:
        """What is likely after a token."""
        follows, times = self._after.get(token, (otherwise, 0))
        return follows, 1 - 0.75 / (min(times, 4) + 1)

    def _one(self, seq: Seq, depth: int, room: DraftRoom) -> Draft:
        length = min(depth, self.length)
        after, tokens, memory = self._after, seq.tokens, seq.memory(self)
        for i in range(memory.get("read", 0), seq.n_prompt - 1):
            after.setdefault(tokens[i], (tokens[i + 1], 1))
        memory["read"] = seq.n_prompt - 1
        guesses = list(self._trail.get(tokens, len(tokens), ()))
        last = guesses[-1][0] if guesses else tokens[-1]
        while len(guesses) < length:
            guesses.append(self._next(last, last))
            last = guesses[-1][0]
        score = np.array([sure for _, sure in guesses[:length]])
        return Draft.chain([token for token, _ in guesses[:length]], score)

    def observe(
        self, seqs: Sequence[Seq], drafts: Sequence[Draft], accepts: Sequence[Accept],
        taps: Sequence[dict[str, NDArray[Any]]],
    ) -> None:  # fmt: skip
        for seq, draft, accept, tap in zip(seqs, drafts, accepts, taps, strict=True):
            ids, top = draft.tokens.tolist(), tap["top1"][:, 0].tolist()
            for token, follows in zip(ids[::-1], top[:0:-1], strict=True):
                self._learn(token, follows)
            path = _path(draft, accept)
            ids, best = [ids[i] for i in path], [top[0], *(top[i + 1] for i in path)]
            stood, tokens = len(accept.path), seq.tokens
            added = [*ids[:stood], accept.bonus]
            n = len(tokens) - len(added)
            if tokens[n:] != added or min(best) < 0:
                continue  # a text that was cut at its end, or logits that are no numbers
            self._learn(tokens[n - 1], best[0])
            held = self._trail.get(tokens, n, ())  # guesses that did not fit into the step are in there
            old = [*((t, _sure(held, i, t)) for i, t in enumerate(ids)), *held[len(ids) :]]
            new: list[Guess] = []
            before = accept.bonus
            for i in range(stood + 1, len(best)):
                token, sure = best[i], SURE
                if before != ids[i - 1]:  # the row was run behind a token that is gone
                    token, sure = self._next(before, token)
                elif i < len(old) and old[i][0] == token:
                    sure = (MOST + old[i][1]) / 2
                new.append((token, sure))
                before = token
            self._trail.put(tokens, (*new, *old[len(best) :]))


def _path(draft: Draft, accept: Accept) -> list[int]:
    """The nodes that stood and the first ones that hang from them: all of a chain, and of a tree into which
    another method merged it a chain too."""
    child: dict[int, int] = {}
    for i, p in enumerate(draft.parent.tolist()):
        child.setdefault(p, i)
    path = list(accept.path)
    at = path[-1] if path else -1
    while at in child:
        at = child[at]
        path.append(at)
    return path


def _sure(held: tuple[Guess, ...], i: int, token: int) -> float:
    return held[i][1] if i < len(held) and held[i][0] == token else SURE
