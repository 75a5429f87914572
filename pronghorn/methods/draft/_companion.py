"""Drafts by a companion, for all sequences at once: chains token by token, trees level by level.

A chain's token is by default the one that the answering model would draw there if its distribution were the
companion's: the likeliest at temperature 0, else a draw with the very random number that the answering model
uses at that position. Where the two distributions agree, so do the tokens, at any temperature: to match
samples accepts more of such a chain than of one drawn independently. With `sample` tokens are drawn with
numbers of their own and `q` says from what: rejection needs that (the same number for both would bias it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn import rng
from pronghorn.companion import Companion, Head
from pronghorn.errors import MethodError, RequestError
from pronghorn.methods.draft._trees import Growth, grower, noise
from pronghorn.nulls import Free
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.target import NodeTarget
from pronghorn.types import Draft

OWN = rng.DRAFT + 1  # purpose of the random numbers that chains are drawn with; trees have rng.DRAFT


@dataclass(frozen=True)
class Style:
    """length: tokens of a chain at most; stop: it ends once the chance that a token of it is wrong is larger;
    sure: it ends with a token less likely than this."""

    length: int
    stop: float = 1.0
    sure: float = 0.0
    sample: bool = False


def check(name: str, length: int, stop: float = 1.0, sure: float = 0.0) -> None:
    """Raises `MethodError` for options out of range."""
    if not 1 <= length <= 64:
        raise MethodError(f"{name}: length is from 1 to 64, not {length}")
    for option, value in (("stop", stop), ("sure", sure)):
        if not 0 <= value <= 1:
            raise MethodError(f"{name}: {option} is a chance from 0 to 1, not {value:g}")


def companion(room: DraftRoom, name: str) -> Companion:
    """Raises `MethodError` where the engine was not started with it."""
    if name not in room.models:
        raise MethodError(f"this engine was not started with the companion model {name!r}")
    return room.models[name]


def depths(k: Sequence[int], length: int, room: DraftRoom) -> list[int]:
    """How deep each draft may go: the step's rows are shared out evenly, and where they are fewer than the
    sequences, the first ones get them."""
    n = max(1, sum(1 for d in k if d))
    each, rest = divmod(room.rows, n)
    out = []
    for d in k:
        more = each + (rest > 0)
        rest -= d > 0
        out.append(min(d, length, more))
    return out


@dataclass
class Chain:
    """A chain under way."""

    seq: Seq
    depth: int
    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    q: list[NDArray[np.float64]] = field(default_factory=list)
    right: float = 1.0  # the chance that all of it is

    def look(self, row: NDArray[Any], tokenizer: Any) -> NodeTarget:
        """The companion's row after the chain as if the answering model had made it."""
        n = len(self.tokens)
        rows = np.broadcast_to(row, (n + 1, len(row)))
        draft = Draft.chain(self.tokens)
        return NodeTarget(self.seq, draft, rows, self.seq.methods.shape, tokenizer.n_vocab)

    def grow(self, row: NDArray[Any], style: Style, tokenizer: Any) -> bool:
        """Add the token after it; whether another may follow."""
        p, n = self.look(row, tokenizer), len(self.tokens)
        try:
            if style.sample and p.temperature > 0:
                q = p.probs(n)
                total = np.cumsum(q)
                at = int(np.searchsorted(total, p.uniform(n, OWN) * total[-1], side="right"))
                token = at if at < len(q) else int(q.argmax())  # the product can round up to the sum
                self.q.append(q)
                score = float((q * q).sum())  # says nothing of the token: it may decide whether that stays
            else:
                token = p.draw(n)
                score = chance(p, n, token)
        except RequestError:  # nothing can follow here
            return False
        self.tokens.append(token)
        self.scores.append(score)
        self.right *= score
        ended = token in tokenizer.eos and not self.seq.request.ignore_eos
        unsure = 1 - self.right > style.stop or score < style.sure
        return len(self.tokens) < self.depth and not ended and not unsure

    def draft(self) -> Draft:
        if not self.tokens:
            return Draft.empty()
        made = Draft.chain(self.tokens)
        q = np.stack(self.q) if self.q else made.q
        return made._replace(q=q, score=np.clip(self.scores, 1e-6, 1 - 1e-6))


def chance(p: NodeTarget, row: int, token: int) -> float:
    """How likely a token is after a row, at temperature 1 where the answer's is 0."""
    if p.shapers or not isinstance(p.seq.constraint, Free):
        x = p.shaped(row)
    else:
        x = p.logits[row, : p.n_tokens]
        x = x / np.float32(p.temperature) if p.temperature > 1e-3 else x
    with np.errstate(over="ignore"):
        return float(math.exp(x[token] - x.max()) / np.exp(x - x.max()).sum())


def chains(
    model: Companion, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom, style: Style,
    heads: Sequence[Head] = (),
) -> list[Draft]:  # fmt: skip
    """A draft for each sequence, no deeper than its k. heads: see `Companion.sync`."""
    out = [Draft.empty() for _ in seqs]
    deep = depths(k, style.length, room)
    some = [i for i, d in enumerate(deep) if d]
    able = model.sync([seqs[i] for i in some], [heads[i] for i in some] if heads else ())
    every = [(i, Chain(seqs[i], min(deep[i], n))) for i, n in zip(some, able, strict=True) if n]
    live = [c for _, c in every]
    rows = [r[0] for r in model.tree([c.seq for c in live], [Draft.empty()] * len(live))] if live else []
    while live:
        going = [c.grow(row, style, model.tokenizer) for c, row in zip(live, rows, strict=True)]
        live = [c for c, goes in zip(live, going, strict=True) if goes]
        if live:
            rows = model.follow([c.seq for c in live], [c.tokens[-1] for c in live])
    for i, c in every:
        out[i] = c.draft()
    return out


def trees(
    model: Companion, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom, kind: str, nodes: int, deep: int
) -> list[Draft]:  # fmt: skip
    """Trees of a kind that `_trees` knows, of `nodes` tokens each, no deeper than `deep` or its k."""
    out = [Draft.empty() for _ in seqs]
    rows = depths([nodes if d else 0 for d in k], nodes, room)
    some = [i for i, n in enumerate(rows) if n]
    live: list[tuple[int, Growth]] = []
    for i, n in zip(some, model.sync([seqs[i] for i in some]), strict=True):
        depth = min(deep, k[i], n)
        if depth:
            made = grower(kind, rows[i], depth, noise(seqs[i]), seqs[i].request.temperature <= 0)
            live.append((i, Growth(made, depth)))
    every = list(live)
    while live:
        logits = model.tree([seqs[i] for i, _ in live], [g.draft for _, g in live])
        live = [(i, g) for (i, g), r in zip(live, logits, strict=True) if _extend(seqs[i], g, r, model)]
    for i, growth in every:
        out[i] = growth.done()
    return out


def _extend(seq: Seq, growth: Growth, logits: NDArray[Any], model: Companion) -> bool:
    """Another level; whether there is a next."""
    p = NodeTarget(seq, growth.draft, logits, seq.methods.shape, model.tokenizer.n_vocab)
    try:
        q = np.stack([p.soft(node + 1) for node in growth.frontier])
    except RequestError:  # nothing can follow somewhere
        return False
    growth.extend(q)
    return bool(growth.frontier)
