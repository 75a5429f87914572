"""A companion that stores keys and values of its own: one row for each token that it has read.

Rows of accepted tokens stay; a chain of drafted ones is stored behind them, and what of it did not stand is
cut off when the text goes on. A tree is run in the tail and leaves nothing.

What texts begin with in common is run once. A reuse method like the engine's stores the rows of prompts as
they come in, and those of a whole text when it ends, until others need the room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.companion import PLAIN, Companion, Head, Part
from pronghorn.kv.layout import PAGE
from pronghorn.kv.store import SeqKV, Store
from pronghorn.model.vocab_map import VocabMap
from pronghorn.run.base import Runner
from pronghorn.slots import Reuse
from pronghorn.types import Draft, Ints

if TYPE_CHECKING:
    from pronghorn.model.tokenizer import Tokenizer
    from pronghorn.seq import Seq

CHUNK = 512  # rows of one text that a call feeds, at most: no step of others waits for a long prompt
FEED = 2048  # rows that it feeds of all texts
LEAST = 32  # rows worth taking from another text, or waiting for


@dataclass(eq=False)
class _Held:
    """Of one text. came: an array of its own ids when it came; n: tokens of it that are stored, `rows` rows;
    drafted: tokens stored behind them, and rows up to the end of each; logits: after the last token of the
    text."""

    seq: Seq
    head: Head
    kv: SeqKV
    came: Any = ()
    n: int = 0
    rows: int = 0
    drafted: list[tuple[int, int]] = field(default_factory=list)
    logits: NDArray[Any] = field(default_factory=lambda: np.zeros(0, np.float32))
    used: int = 0
    waited: bool = False  # for rows that another stores

    @property
    def coming(self) -> bool:
        """Whether rows of what came are missing."""
        return self.rows < len(self.came)

    @property
    def size(self) -> int:
        return len(self.head[0]) + len(self.seq.tokens) - self.head[1]

    @property
    def n_prompt(self) -> int:
        return max(0, len(self.head[0]) + self.seq.n_prompt - self.head[1])

    def branch_of(self, other: _Held) -> bool:
        return other.seq.request is self.seq.request and other.head == self.head

    def text(self, first: int, last: int) -> list[int]:
        ids, skipped = self.head
        at = skipped - len(ids)
        return [*ids[first:last], *self.seq.tokens[max(first, len(ids)) + at : max(last, len(ids)) + at]]


class Beside(Companion):
    """A model with a store of its own.

    reuse: of its own, not opened yet. draft: what runs drafted tokens, where that is not the runner that
    takes in texts (it writes to the same store); what it stored is then run again once it stands.
    """

    def __init__(
        self, runner: Runner, store: Store, reuse: Reuse, n_vocab: int, tokenizer: Tokenizer, context: int,
        vocab: VocabMap | None = None, draft: Runner | None = None,
    ) -> None:  # fmt: skip
        super().__init__(runner, n_vocab, tokenizer)
        self.store, self.reuse, self.context, self.vocab = store, reuse, context, vocab
        self.reuse.open(store, "", self.cost.prefill)
        self.draft = draft or runner
        self._most = 1 << 60
        self._held: dict[tuple[int, int], _Held] = {}
        self._current: dict[int, _Held] = {}  # by sequence, what the last `sync` was about
        self._clock = 0

    def sync(self, seqs: Sequence[Seq], heads: Sequence[Head] = ()) -> list[int]:
        self._clock += 1
        every = [self._open(s, h) for s, h in zip(seqs, heads or [PLAIN] * len(seqs), strict=True)]
        self._current |= {s.id: h for s, h in zip(seqs, every, strict=True)}
        left = FEED
        jobs: list[tuple[_Held, list[int], int]] = []
        out: list[int] = []
        for h in every:
            h.waited = h.coming and any(self._serves(other, len(ids), h) for other, ids, _ in jobs)
            if h.waited:
                out.append(0)
                continue
            last = min(h.size, h.n + min(CHUNK, left))
            ids = self._ids(h, last)
            fits = h.rows + len(ids) < self.context and self._fits(len(ids) + PAGE)
            ready = fits and last == h.size and (len(h.logits) > 0 or len(ids) > 0)
            out.append(max(0, self.context - h.rows - len(ids)) if ready else 0)
            if fits and ids:
                jobs.append((h, ids, last))
                left -= len(ids)
        if jobs:
            rows = self._store(self.runner, [(h, ids) for h, ids, _ in jobs])
            for (h, ids, last), logits in zip(jobs, rows, strict=True):
                coming = h.coming
                h.n, h.rows, h.logits = last, h.rows + len(ids), logits.copy()
                if coming:
                    self._offer(h, self.store.fork(h.kv))
        return out

    def tree(self, seqs: Sequence[Seq], trees: Sequence[Draft]) -> list[NDArray[Any]]:
        held = [self._current[s.id] for s in seqs]
        own = [t._replace(tokens=self._own(t.tokens)) for t in trees]
        parts = [Part(h.kv, h.n_prompt, [], t) for h, t in zip(held, own, strict=True)]
        if not any(t.n for t in trees):
            return [h.logits[None] for h in held]
        rows = self._mapped(self._run(self.draft, parts))
        return [np.concatenate([h.logits[None], r]) for h, r in zip(held, rows, strict=True)]

    def follow(self, seqs: Sequence[Seq], tokens: Sequence[int]) -> list[NDArray[Any]]:
        held = [self._current[s.id] for s in seqs]
        own = self._own(np.asarray(tokens, np.int32)).tolist()
        rows = self._store(self.draft, [(h, [t]) for h, t in zip(held, own, strict=True)])
        for h, token in zip(held, tokens, strict=True):
            h.drafted.append((token, h.kv.length))
        return rows

    # ------------------------------------------------------------------ what is held

    def _open(self, seq: Seq, head: Head) -> _Held:
        """What is held of a text, cut to what is right of it."""
        key = seq.id, head[1]
        h = self._held.get(key)
        if h is None or h.seq is not seq or h.head != head:
            self._free(key)
            h = self._held[key] = _Held(seq, head, self.store.new())
            h.came = np.asarray(self._feed(h, 0, h.size), np.int32)
        if not h.n:
            self._share(h)
        if not h.n or h.waited:
            self._attach(h)
        h.used = self._clock
        if self.draft is self.runner:
            right = h.text(h.n, h.n + len(h.drafted))
            while right and h.drafted and h.n + 1 < h.size and h.drafted[0][0] == right.pop(0):
                (_, h.rows), *h.drafted = h.drafted
                h.n += 1
        h.drafted = []
        if h.kv.length > h.rows:
            self.store.cut(h.kv, h.rows)
        return h

    def _share(self, h: _Held) -> None:
        """Start from the prompt's rows of another branch of the same request."""
        for other in self._held.values():
            if h.branch_of(other) and other.n >= h.n_prompt > 1:
                h.kv, h.n = self.store.fork(other.kv), h.n_prompt - 1
                h.rows = len(self._feed(h, 0, h.n))
                self.store.cut(h.kv, h.rows)
                return

    def _attach(self, h: _Held) -> None:
        """Go on from stored rows, where they are more than it has. Of what came the last row is run in any
        case, for its logits."""
        span = self.reuse.match(h.came.tolist(), len(h.came) - 1)
        if span is None:
            return
        n, rows = self._whole(h, span.n)
        if rows - h.rows < LEAST:
            return
        kv = self.store.fork(span.kv)
        self.store.cut(kv, rows)
        h.kv.free()
        h.kv, h.n, h.rows = kv, n, rows

    def _whole(self, h: _Held, rows: int) -> tuple[int, int]:
        """Tokens of a text whose own ids are among the first `rows`, and how many ids those are."""
        if self.vocab is None:
            return rows, rows
        ends = np.cumsum([len(self._feed(h, i, i + 1)) for i in range(h.size - 1)])
        n = int(np.searchsorted(ends, rows, side="right"))
        return n, int(ends[n - 1]) if n else 0

    def _serves(self, other: _Held, more: int, h: _Held) -> bool:
        """Whether `other`, which is about to store `more` rows, has rows for `h` from the next round on."""
        if not h.n and h.branch_of(other):
            return True
        if not other.coming:  # it stores no more, and what it stored is not to be had: nobody waits for ever
            return False
        alike = self.reuse.overlap(h.came, other.came)
        return min(alike, other.rows + more, len(h.came) - 1) - h.rows >= LEAST

    def _offer(self, h: _Held, kv: SeqKV) -> None:
        """Hand over the rows of the text, unless a call that was cut short left others."""
        ids = self._feed(h, 0, h.n)
        if len(ids) == kv.length:
            self.reuse.store(ids, kv, PAGE)
        else:
            kv.free()

    def _ids(self, h: _Held, last: int) -> list[int]:
        return self._feed(h, h.n, last) if h.n < last else []

    def _feed(self, h: _Held, first: int, last: int) -> list[int]:
        """Own ids of tokens `first` to `last` of a text."""
        text = h.text(first, last)
        if self.vocab is None:
            return text
        begin = self.vocab.begin if first == 0 else ()
        return [*begin, *(i for token in text for i in self.vocab.feed(token))]

    def _own(self, tokens: Ints) -> Ints:
        """Drafted tokens have equals, since their logits came from those."""
        if self.vocab is None:
            return tokens
        return np.asarray(np.maximum(self.vocab.equal[tokens], 0), np.int32)

    def _store(self, runner: Runner, jobs: Sequence[tuple[_Held, list[int]]]) -> list[NDArray[Any]]:
        """Run and store rows behind what is stored; logits after the last of each."""
        rows = self._run(runner, [Part(h.kv, h.n_prompt, ids) for h, ids in jobs])
        places, at = [], 0
        for h, ids in jobs:
            n = len(ids)
            places.append((np.arange(at, at + n, dtype=np.int32), *self.store.reserve(h.kv, n)))
            self.store.extend(h.kv, range(h.kv.next_pos, h.kv.next_pos + n))
            at += n
        runner.commit(*(np.concatenate(part) for part in zip(*places, strict=True)))
        return [r[0] for r in self._mapped(rows)]

    def _mapped(self, rows: list[NDArray[Any]]) -> list[NDArray[Any]]:
        if self.vocab is not None:
            return [self.vocab.logits(r) for r in rows]
        if rows and rows[0].shape[1] == self.n_vocab:
            return rows
        more = max(0, self.n_vocab - rows[0].shape[1])  # padding of one output layer, or of the other
        return [np.pad(r[:, : self.n_vocab], ((0, 0), (0, more)), constant_values=-np.inf) for r in rows]

    # ------------------------------------------------------------------ room

    def _fits(self, rows: int) -> bool:
        """Whether so many more rows fit; what is stored gives way, then what was not asked for in this call,
        oldest first."""
        need = (rows + PAGE) * self.store.row_bytes
        while self.store.held + need > self._most:
            if self.reuse.shrink():
                continue
            old = [(h.used, key) for key, h in self._held.items() if h.used < self._clock and h.rows]
            if not old:
                return False
            self._free(min(old)[1])
        return True

    def _free(self, key: tuple[int, int]) -> None:
        h = self._held.pop(key, None)
        if h is not None:
            h.kv.free()

    def drop(self, seq_id: int) -> None:
        self._current.pop(seq_id, None)
        for key in [k for k in self._held if k[0] == seq_id]:
            h = self._held.pop(key)
            if h.kv.length > h.rows:
                self.store.cut(h.kv, h.rows)
            self._offer(h, h.kv)

    @property
    def row_bytes(self) -> float:
        return self.store.row_bytes

    @property
    def held(self) -> int:
        return self.store.held

    @property
    def reserved(self) -> int:
        return self.store.reserved

    def limit(self, rows: int) -> None:
        self._most = int(rows * self.store.row_bytes)

    def close(self) -> None:
        for key in list(self._held):
            self._free(key)
        self._current.clear()
        self.reuse.close()
