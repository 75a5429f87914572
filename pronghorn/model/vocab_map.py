"""Two vocabularies side by side: what a text of one is in the other, and whose tokens are equal.

Tokens with the same bytes are equal, special ones with the same markup, and so are those that begin or end
a text. What has no equal is written with several tokens of the other, or left out where it is no text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.model.tokenizer import Tokenizer


class VocabMap:
    """From the ids of `target` to those of `own`. n_target: ids of the target's output layer."""

    def __init__(self, target: Tokenizer, own: Tokenizer, n_target: int) -> None:
        self.target, self.own = target, own
        texts, marks = own.vocabulary(), own.special_tokens()
        of_text: dict[bytes, int] = {}
        for i, text in enumerate(texts):
            if text and i not in marks:
                of_text.setdefault(text, i)
        of_mark = {mark: i for i, mark in marks.items() if mark}
        self.equal = np.full(n_target, -1, np.int64)  # own id of each id of the target, -1: none
        mine = target.special_tokens()
        for i, text in enumerate(target.vocabulary()[:n_target]):
            self.equal[i] = of_mark.get(mine[i], -1) if i in mine else of_text.get(text, -1)
        for ids, other in ((target.eos, own.eos[:1]), ((target.bos,), (own.bos,))):
            for i in ids:
                if i >= 0 and other and self.equal[i] < 0:
                    self.equal[i] = other[0]
        # a text of the target's may begin without a mark that this model knows texts by
        self.begin = (own.bos,) if own.bos >= 0 > target.bos else ()
        self._others: dict[int, tuple[int, ...]] = {}

    def feed(self, token: int) -> tuple[int, ...]:
        """Own ids for a token of the target's."""
        if self.equal[token] >= 0:
            return (int(self.equal[token]),)
        if token not in self._others:
            text = self.target.token_bytes(token).decode("utf-8", "replace")
            self._others[token] = tuple(self.own.encode(text, bos=False)) if text else ()
        return self._others[token]

    def logits(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows (n, own ids) as rows (n, n_target); -inf where the target's token has no equal."""
        out = rows[:, np.maximum(self.equal, 0)]
        out[:, self.equal < 0] = -np.inf
        return out


def mapped(target: Tokenizer, own: Tokenizer, n_target: int) -> VocabMap | None:
    """None where both have the same ids for the same tokens."""
    same = target.vocabulary() == own.vocabulary() and target.special_tokens() == own.special_tokens()
    return None if same else VocabMap(target, own, n_target)
