"""Lookahead decoding (Fu et al., 2024, arXiv 2402.02057).

Beside the text runs a window of guessed ones: `window` columns, each an n-gram in the making that begins at
one of the next places. Every step refines all columns at once and each gives an n-gram as the target would
say it; those are pooled by their first token, and those that begin with the pending token are verified.

Window, guesses and their verification are one draft tree. Row 0 of the window is a chain behind the pending
token, and each column hangs from its place in it: cell (r, c) sees row 0 up to column c and the cells above
it in its own column, which is the paper's mask. Guesses are paths from the pending token and share nodes with
the window where tokens agree. A window cell that is right is accepted like any guess.

Departures: the text's own n-grams are guesses too, without taking room in the pool; a new column begins as a
piece of the text at a place fixed by its position, whole, so that no warm-up is needed; guesses come first,
so that a step with little room cuts the window, and a column that was cut keeps its tokens. At any
temperature the window holds likeliest tokens. The pool belongs to the instance, all sequences of an engine
share it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.methods.draft._single import Single
from pronghorn.methods.draft._trail import Trail
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Accept, Draft, Guarantee, Traits

TRAILS = 1024  # texts whose windows are remembered
KEYS = 1 << 15  # first tokens that have n-grams in the pool
CELL = 0.05  # how sure a window cell is that is no guess

Gram = tuple[int, ...]  # a column: its token in row 0, then one for every further row


class _Pool:
    """First token -> at most `most` n-grams without it, the one used last at the end."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.grams: dict[int, dict[Gram, None]] = {}

    def put(self, first: int, rest: Gram) -> None:
        held = self.grams.pop(first, {})
        held.pop(rest, None)
        held[rest] = None
        if len(held) > self.most:
            del held[next(iter(held))]
        self.grams[first] = held
        if len(self.grams) > KEYS:
            del self.grams[next(iter(self.grams))]

    def get(self, first: int) -> list[Gram]:
        return list(self.grams.get(first, ()))[::-1]


class _Tree:
    """A draft in the making: paths from the pending token that share their beginnings."""

    def __init__(self) -> None:
        self.child: dict[tuple[int, int], int] = {}
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.guesses: list[int] = []  # guesses through each node

    def add(self, node: int, path: Sequence[int], guess: int) -> None:
        for token in path:
            at = self.child.setdefault((node, token), len(self.tokens))
            if at == len(self.tokens):
                self.tokens.append(token)
                self.parents.append(node)
                self.guesses.append(0)
            self.guesses[at] += guess
            node = at

    def draft(self, guesses: int) -> Draft:
        """A guess counts its share of those at its parent, against one more at the first token, which says
        little, and a part of one later."""
        through = [guesses + 1 if p < 0 else self.guesses[p] + 0.25 for p in self.parents]
        score = [max(CELL, g / n) for g, n in zip(self.guesses, through, strict=True)]
        return Draft(
            np.array(self.tokens, np.int32),
            np.array(self.parents, np.int32),
            score=np.array(score, np.float64),
        )


@dataclass(frozen=True)
class Lookahead(Single):
    window: int = 2  # columns of the window; 0: plain decoding
    ngram: int = 5  # tokens of an n-gram, its first one included
    guesses: int = 4  # n-grams that are tried in a step, and kept for each first token

    traits = Traits(Guarantee.EXACT, taps=("top1",))

    def __post_init__(self) -> None:
        for name, low, top in (("window", 0, 64), ("ngram", 2, 32), ("guesses", 1, 64)):
            if not low <= getattr(self, name) <= top:
                raise MethodError(f"lookahead: {name} is from {low} to {top}, not {getattr(self, name)}")

    @cached_property
    def _pool(self) -> _Pool:
        return _Pool(self.guesses)

    @cached_property
    def _trail(self) -> Trail[tuple[Gram, ...]]:
        return Trail(TRAILS)

    def _one(self, seq: Seq, depth: int, room: DraftRoom) -> Draft:
        if not self.window:
            return Draft.empty()
        tokens, tree = seq.tokens, _Tree()
        places = self._places(seq).get(tokens[-1], ())
        text = [tuple(tokens[i : i + self.ngram - 1]) for i in reversed(places)]
        both = [g for pair in zip_longest(self._pool.get(tokens[-1]), text) for g in pair if g]
        guesses = list(dict.fromkeys(both))[: self.guesses]
        for gram in guesses:
            tree.add(-1, gram, 1)
        for path in self._paths(self._window(tokens, len(tokens))):
            tree.add(-1, path, 0)
        return tree.draft(len(guesses)).clip(depth)

    def _places(self, seq: Seq) -> dict[int, deque[int]]:
        """Token -> the last places of the text before which it stands."""
        memory, tokens = seq.memory(self), seq.tokens
        places: dict[int, deque[int]] = memory.setdefault("places", {})
        for i in range(memory.get("read", 0) + 1, len(tokens)):
            places.setdefault(tokens[i - 1], deque(maxlen=self.guesses)).append(i)
        memory["read"] = max(memory.get("read", 0), len(tokens) - 1)
        return places

    def _window(self, tokens: list[int], n: int) -> tuple[Gram, ...]:
        """The columns of the text's first n tokens; the first token of the first is the pending one."""
        return self._trail.get(tokens, n, ()) or tuple(self._fresh(tokens, n, c) for c in range(self.window))

    def _fresh(self, tokens: list[int], n: int, column: int) -> Gram:
        """What a new column begins with: a piece of the text, the pending token first in column 0."""
        start = (n + column) * 7919
        piece = [tokens[(start + i) % n] for i in range(self.ngram - 1)]
        return (tokens[n - 1], *piece[1:]) if column == 0 else tuple(piece)

    def _paths(self, window: tuple[Gram, ...]) -> list[Gram]:
        """From the pending token to the last cell of each column: row 0 first, then the column."""
        row = tuple(column[0] for column in window)
        return [(*row[1 : c + 1], *column[1:]) for c, column in enumerate(window)]

    def observe(
        self, seqs: Sequence[Seq], drafts: Sequence[Draft], accepts: Sequence[Accept],
        taps: Sequence[dict[str, NDArray[Any]]],
    ) -> None:  # fmt: skip
        if not self.window:
            return
        for seq, draft, accept, tap in zip(seqs, drafts, accepts, taps, strict=True):
            added = [*(int(draft.tokens[i]) for i in accept.path), accept.bonus]
            n = len(seq.tokens) - len(added)
            if seq.tokens[n:] == added:  # not so when the text was cut at its end
                self._shift(seq.tokens, n, draft, tap["top1"][:, 0].tolist())

    def _shift(self, tokens: list[int], n: int, draft: Draft, best: list[int]) -> None:
        """Refine the window that stood behind the first n tokens, pool its n-grams and move it to the end."""
        window = self._window(tokens, n)
        node = {p: i for i, p in enumerate(zip(draft.parent.tolist(), draft.tokens.tolist(), strict=True))}
        moved: list[Gram] = []
        for column, path in zip(window, self._paths(window), strict=True):
            at = -1
            for token in path:
                at = node.get((at, token), -2) if at > -2 else at
            follows = best[at + 1] if at > -2 else -1
            if follows >= 0:
                self._pool.put(column[0], (*column[1:], follows))
                moved.append((*column[1:], follows))
            else:
                moved.append(column)
        end = len(tokens)
        moved = moved[end - n - 1 :]
        moved += [self._fresh(tokens, end, c) for c in range(len(moved), self.window)]
        moved[0] = (tokens[-1], *moved[0][1:])
        self._trail.put(tokens, tuple(moved))
