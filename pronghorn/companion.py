"""Companions: further models that drafters ask, beside the one that answers.

A companion is another checkpoint with a KV store of its own, or the answering model's weights, shared, with
sublayers left out. Nothing of an answer depends on one: whatever it holds of a sequence can be dropped at any
time and comes back from `seq.tokens`.

    NAME                 a bundled model, a folder, a file or "org/name"; "self" is the answering model
    NAME:weight=int4     its matrices in another weight format
    NAME:skip=3+5a+7m    without layer 3, the attention of 5 and the feed-forward of 7
    NAME:skip=odd        without every second layer, the first and the last left in
    NAME:exit=4          the first 4 layers and the head
    NAME:block=2         drafts run the attention of 2 layers in a row side by side (`sublayers.parallel`)

"self" with sublayers left out stores nothing: it attends to the keys and values that the answering model has
stored, which are those of the whole model, as in Draft & Verify.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pronghorn.cost import StepCost, reads
from pronghorn.kv.store import SeqKV
from pronghorn.run.base import Runner
from pronghorn.types import Draft, Rows

if TYPE_CHECKING:
    from pronghorn.model.tokenizer import Tokenizer
    from pronghorn.seq import Seq

NEAR = 16  # rows that the answering model has yet to store, where another's rows are borrowed
Head = tuple[tuple[int, ...], int]
PLAIN: Head = ((), 0)


class Part(NamedTuple):
    """Rows of one sequence in a step: known tokens, whose last is wanted, and a tree behind them."""

    kv: SeqKV
    n_prompt: int
    known: Sequence[int]
    tree: Draft = Draft.empty()


class Companion:
    """What drafters see. A call is one step for all its sequences.

    tokenizer, n_vocab: the answering model's, whatever the own vocabulary: logits have as many columns.
    cost: of its steps.
    """

    def __init__(self, runner: Runner, n_vocab: int, tokenizer: Tokenizer) -> None:
        self.runner, self.n_vocab, self.tokenizer = runner, n_vocab, tokenizer
        self.cost = StepCost()

    def sync(self, seqs: Sequence[Seq], heads: Sequence[Head] = ()) -> list[int]:
        """Take in the tokens of each sequence, up to the pending one, and forget earlier drafts. Gives how
        many tokens a draft may have: 0 while a text is not in yet, or cannot be.

        heads: for each sequence, (ids, n): `ids` stand for its first n tokens."""
        raise NotImplementedError

    def tree(self, seqs: Sequence[Seq], trees: Sequence[Draft]) -> list[NDArray[Any]]:
        """Logits (1 + n, n_vocab) after the pending token and each node of a sequence's tree. Nothing of it
        is stored. After `sync`, for sequences that may have drafts."""
        raise NotImplementedError

    def follow(self, seqs: Sequence[Seq], tokens: Sequence[int]) -> list[NDArray[Any]]:
        """Logits (n_vocab,) after one more drafted token of each sequence; the first follows the pending
        token."""
        raise NotImplementedError

    def drop(self, seq_id: int) -> None:
        """Free what is held of a sequence."""

    @property
    def row_bytes(self) -> float:
        """Bytes of KV that a token takes."""
        return 0.0

    @property
    def held(self) -> int:
        """Bytes of KV in use."""
        return 0

    @property
    def reserved(self) -> int:
        """Bytes of KV taken from the system."""
        return 0

    def limit(self, rows: int) -> None:
        """Hold no more than so many rows of KV."""

    def close(self) -> None:
        """Free everything held."""

    def _run(self, runner: Runner, parts: Sequence[Part]) -> list[NDArray[Any]]:
        """Logits of each part: of its last known token, if it has any, and of the nodes. They last until the
        runner's next step."""
        start = time.perf_counter()
        sizes = [len(p.known) + p.tree.n for p in parts]
        ids, pos, span, index, parent, want = rows = np.zeros((6, sum(sizes)), np.int32)
        at = read = 0
        for i, (p, size) in enumerate(zip(parts, sizes, strict=True)):
            n, mid, end = len(p.known), at + len(p.known), at + size
            ids[at:mid], ids[mid:end] = p.known, p.tree.tokens
            pos[at:mid] = np.arange(n)
            pos[mid:end] = n - 1 + p.tree.depths()
            pos[at:end] += p.kv.next_pos
            behind = np.where(p.tree.parent < 0, n - 1, n + p.tree.parent)
            local = np.concatenate([np.arange(-1, n - 1), behind])
            parent[at:end] = np.where(local < 0, -1, local + at)
            want[max(at, mid - 1) : end] = 1
            index[at:end] = i
            span[at:end] = np.maximum(pos[at:end] + 1, p.n_prompt)
            read += reads(size, p.kv.length)
            at = end
        logits = runner.run(Rows(*rows), [p.kv for p in parts], False).logits
        out, first = [], 0
        for p in parts:
            n = p.tree.n + bool(p.known)
            out.append(logits[first : first + n])
            first += n
        self.cost.observe(at, read, time.perf_counter() - start)
        return out


class Borrowed(Companion):
    """The answering model with sublayers left out, over that model's own store."""

    def __init__(self, runner: Runner, n_vocab: int, tokenizer: Tokenizer, context: int) -> None:
        super().__init__(runner, n_vocab, tokenizer)
        self.context = context
        self._guess: dict[int, list[int]] = {}

    def sync(self, seqs: Sequence[Seq], heads: Sequence[Head] = ()) -> list[int]:
        if any(ids or n for ids, n in heads):
            raise ValueError("a companion that stores nothing has no text of its own")
        for seq in seqs:
            self._guess[seq.id] = []
        near = (len(s.tokens) - s.kv.length <= NEAR for s in seqs)
        left = (self.context - s.kv.next_pos - NEAR for s in seqs)
        return [max(0, n) if ready else 0 for ready, n in zip(near, left, strict=True)]

    def tree(self, seqs: Sequence[Seq], trees: Sequence[Draft]) -> list[NDArray[Any]]:
        parts = [self._part(s, t) for s, t in zip(seqs, trees, strict=True)]
        return self._run(self.runner, parts)

    def follow(self, seqs: Sequence[Seq], tokens: Sequence[int]) -> list[NDArray[Any]]:
        for seq, token in zip(seqs, tokens, strict=True):
            self._guess[seq.id].append(token)
        # known rows again and again: few rows cost what one costs, and nobody has to store them
        parts = [self._part(s, Draft.chain(self._guess[s.id])) for s in seqs]
        return [rows[-1] for rows in self._run(self.runner, parts)]

    def _part(self, seq: Seq, tree: Draft) -> Part:
        return Part(seq.kv, seq.n_prompt, seq.tokens[seq.kv.length :], tree)

    def drop(self, seq_id: int) -> None:
        self._guess.pop(seq_id, None)

    def close(self) -> None:
        self._guess.clear()
