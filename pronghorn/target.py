"""The target's view of a draft: logits shaped, masked and normalised at each node that is visited."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import RequestError
from pronghorn.nulls import Free
from pronghorn.ops.cpu import _native
from pronghorn.rng import DRAW, MASK, uniform
from pronghorn.seq import Seq
from pronghorn.types import Accept, Draft


def softmax(x: NDArray[Any]) -> NDArray[np.float64]:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum(), np.float64)


def divided(x: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """x / temperature, up to a constant: the largest becomes 0, so that no temperature overflows it."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray((x - x.max()) / temperature)


def _followable(x: NDArray[np.float64]) -> None:
    if not np.isfinite(x.max()):
        raise RequestError(
            "no token can follow: the constraint and the shapers exclude every one, or the model's logits "
            "are not finite"
        )


class NodeTarget:
    """See `slots.Target`. logits (1 + draft.n, n_vocab): the pending token's row, then the nodes'.

    n_tokens: ids from here on are padding of the model's output layer and no token; never drawn.
    """

    def __init__(
        self, seq: Seq, draft: Draft, logits: NDArray[Any], shapers: Sequence[Any], n_tokens: int
    ) -> None:
        self.seq, self.draft, self.logits, self.shapers = seq, draft, logits, shapers
        self.n_tokens = n_tokens
        self.temperature = seq.request.temperature
        self._shaped: dict[int, NDArray[np.float64]] = {}

    @cached_property
    def _parents(self) -> list[int]:
        return [int(p) for p in self.draft.parent]

    def branch(self, row: int) -> list[int]:
        """Drafted tokens from the pending token (excluded) to this row."""
        out = []
        node = row - 1
        while node >= 0:
            out.append(int(self.draft.tokens[node]))
            node = self._parents[node]
        return out[::-1]

    def shaped(self, row: int) -> NDArray[np.float64]:
        """Logits after the constraint's mask, the shapers and the temperature."""
        if row not in self._shaped:
            branch = self.branch(row)
            x = np.asarray(self.logits[row], np.float64).copy()
            state = self.seq.constraint
            walked = state.advance(branch)
            if not isinstance(state, Free):
                allowed = np.zeros(len(x), bool)
                if walked == len(branch):
                    state.mask(allowed)
                x[~allowed] = -np.inf
            state.rollback(walked)
            x[self.n_tokens :] = -np.inf
            path = self.seq.path(branch) if self.shapers else np.zeros(0, np.int32)
            divide = self.temperature > 0  # before what truncates, as the field does
            for s in self.shapers:
                _followable(x)  # before a shaper that would stumble over it
                if divide and s.order > 1:
                    x, divide = divided(x, self.temperature), False
                x = s.shape(x, path, self.seq.n_prompt)
            _followable(x)
            self._shaped[row] = divided(x, self.temperature) if divide else x
        return self._shaped[row]

    def probs(self, row: int) -> NDArray[np.float64]:
        x = self.shaped(row)
        if self.temperature > 0:
            return softmax(x)
        out = np.zeros(len(x))
        out[int(x.argmax())] = 1.0
        return out

    def soft(self, row: int) -> NDArray[np.float64]:
        return softmax(self.shaped(row))

    def walk(self, draft: Draft) -> Accept:
        """`draft.walk(draw)`, in one call where nothing changes the logits."""
        logits, request = self.logits, self.seq.request
        if self.shapers or not isinstance(self.seq.constraint, Free) or logits.dtype != np.float32:
            return draft.walk(self.draw)
        n = min(self.n_tokens, logits.shape[1])  # a tokenizer may have more tokens than the model
        rows, tokens, whole = _native.walk(
            np.ascontiguousarray(logits), n, draft.tokens, draft.parent, self.temperature,
            int(request.seed) & MASK, self.seq.branch, len(self.seq.tokens),
        )  # fmt: skip
        return Accept([r - 1 for r in rows[1:]], tokens[-1]) if whole else draft.walk(self.draw)

    def draw(self, row: int) -> int:
        if self.temperature <= 0:
            best = -1 if self.shapers else self._largest(row)
            return best if best >= 0 else int(self.shaped(row).argmax())
        u = self.uniform(row, DRAW)
        if not self.shapers and isinstance(self.seq.constraint, Free):
            logits = np.ascontiguousarray(self.logits[row, : self.n_tokens], np.float32)
            token = _native.draw(logits, self.temperature, u)
            if token >= 0:
                return token
        x = self.shaped(row)
        left = np.flatnonzero(x > -np.inf)  # few, where the shapers removed the rest
        total = np.cumsum(np.exp(x[left] - x.max()))
        at = int(np.searchsorted(total, u * total[-1], side="right"))
        return int(left[min(at, len(left) - 1)])  # the product can round up to the sum

    def _largest(self, row: int) -> int:
        """The token of the largest logit if the constraint allows it, else -1: then all others must be
        looked at. To ask for one token costs less than a mask of all."""
        logits = self.logits[row]
        best = int(logits[: self.n_tokens].argmax())
        if not math.isfinite(logits[best]):
            return -1
        if isinstance(self.seq.constraint, Free):
            return best
        path = [*self.branch(row), best]
        walked = self.seq.constraint.advance(path)
        self.seq.constraint.rollback(walked)
        return best if walked == len(path) else -1

    def uniform(self, row: int, purpose: int) -> float:
        pos = len(self.seq.tokens) + len(self.branch(row))
        return uniform(self.seq.request.seed, self.seq.branch, pos, purpose)

    def memory(self, method: Any) -> dict[str, Any]:
        return self.seq.memory(method)


def logprobs(logits: NDArray[Any], tokens: Sequence[int]) -> list[float]:
    """log p of each token under the model's own distribution at temperature 1."""
    x = np.asarray(logits, np.float64)
    top = x.max()
    total = top + np.log(np.exp(x - top).sum())
    return [float(x[t] - total) for t in tokens]


def logprob(logits: NDArray[Any], token: int) -> float:
    """`logprobs` of one token."""
    return logprobs(logits, [token])[0]
