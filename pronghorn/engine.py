"""The engine: one loop, many sequences in a step, every decision taken by a slot.

    submit    tokens in, constraint opened, stored prefix matched
    step      schedule -> clip to barriers -> draft -> run all rows -> shape, mask, verify -> commit ->
              at a barrier: plan, seal and index what is kept

The engine imports no method and asks for no name. It reads traits, and every slot has a null object.

The barrier rule: rows are sealed, indexed, quantized, evicted or moved only when the committed length
reaches a barrier, a pure function of position and prompt length, and no step crosses one. Tokens then do
not depend on the drafter, on the tree's shape or on how the prompt was cut into chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.compose import Composition
from pronghorn.errors import RequestError
from pronghorn.kv.store import SeqKV, Store
from pronghorn.model.bind import Bound
from pronghorn.run.base import Runner
from pronghorn.seq import Request, Seq
from pronghorn.slots import Room, Span
from pronghorn.target import NodeTarget, logprob
from pronghorn.text import TextStream
from pronghorn.types import FOREVER, Accept, Draft, Ints, Rows

if TYPE_CHECKING:
    from pronghorn.model.tokenizer import Tokenizer

PROMPT_GRID = 2048  # rows between barriers inside the prompt: large products stay large
DECODE_GRID = 64  # rows between barriers after it
STEP_ROWS = 4096  # rows of one step, at most


@dataclass
class Event:
    """New output of one sequence. drafted: for each token, whether a draft had it right."""

    seq: Seq
    tokens: list[int]
    drafted: list[bool]
    text: str
    finish: str


@dataclass
class _Work:
    """What one sequence does in a step."""

    seq: Seq
    take: int  # rows of known tokens
    last: bool  # they end with the last known token, so a new one can be chosen
    barrier: int
    draft: Draft = field(default_factory=Draft.empty)
    row: int = 0  # first row in the step
    logit: int = 0  # first row in the logits


class Engine:
    """Runs requests over one model, one store and one composition.

    kv_rows: rows of KV that may be held in all. clip=False lets steps cross barriers; only the test that
    shows why the rule exists sets it.
    """

    def __init__(
        self,
        bound: Bound,
        runner: Runner,
        store: Store,
        methods: Composition,
        tokenizer: Tokenizer,
        kv_rows: int,
        eos: Sequence[int] = (),
        clip: bool = True,
    ) -> None:
        self.bound, self.runner, self.store, self.methods = bound, runner, store, methods
        self.tokenizer, self.kv_rows, self.clip = tokenizer, kv_rows, clip
        self.eos = frozenset(eos)
        self.waiting: list[Seq] = []
        self.running: list[Seq] = []
        self.siblings: dict[int, list[Seq]] = {}  # sequence id -> branches that wait for its prompt
        self.texts: dict[int, TextStream] = {}
        self.moves = any(t.moves for t in methods.traits)
        self.bounded = bound.hard_context or not self.moves  # a text ends with the context
        # a row whose rotation depends on the prompt's length is of no use to another prompt
        self.shareable = not any(r.varies for r in bound.ropes)
        self.seals = methods.kvfmt.group > 0 or not methods.select.dense
        taps = methods.taps
        self.q_rows = max((int(t.removeprefix("q.last")) for t in taps if t.startswith("q.")), default=0)
        self.hidden = any(t.startswith("hidden.") for t in taps)
        self.top = max((int(t.removeprefix("top")) for t in taps if t.startswith("top")), default=0)
        self._ids = 0
        self._buffer = np.zeros((6, 256), np.int32)

    # ------------------------------------------------------------------ requests

    def submit(self, request: Request) -> list[Seq]:
        """Queue a request; returns its sequences (several under a search). Raises `RequestError`."""
        ids = [request.ids[i] for i in self.methods.prune.keep(request.ids)] if request.ids else []
        self._check(request, ids)
        if not request.score and self.bounded:
            most = self.bound.context - len(ids)  # an answer ends with the context, so does its memory
            request = replace(request, max_tokens=min(request.max_tokens, most))
        n = 1 if request.score else self.methods.search.branches(request)
        if n > 1:
            request = replace(request, logprobs=True)  # what a search chooses by
        self._fits(request, len(ids), n)
        seqs = [self._seq(request, ids, b) for b in range(n)]
        leader = seqs[0]
        if n > 1:
            self.siblings[leader.id] = seqs[1:]
            leader.branches = n
        self.waiting.append(leader)
        return seqs

    def _seq(self, request: Request, ids: list[int], branch: int) -> Seq:
        self._ids += 1
        state = self.methods.constrain.open(self.tokenizer)
        seq = Seq(self._ids, request, list(ids), len(ids), self.store.new(), state, branch)
        self.texts[seq.id] = TextStream(self.tokenizer, request.stop, ids)
        return seq

    def _check(self, request: Request, ids: list[int]) -> None:
        n, limit = len(ids), self.bound.context
        if not n:
            raise RequestError("the prompt is empty: give at least one token")
        wrong = [t for t in ids if not 0 <= t < self.bound.n_vocab]
        if wrong:
            raise RequestError(f"token id {wrong[0]} is outside the vocabulary of {self.bound.n_vocab}")
        if request.max_tokens < 1 and not request.score:
            raise RequestError(f"max_tokens is {request.max_tokens}: ask for at least one token")
        if not 0 <= request.temperature < 1e6:
            raise RequestError(f"temperature {request.temperature} is out of range: use 0 (greedy) or more")
        if request.temperature > 0 and self.methods.verify.traits.greedy:
            raise RequestError("this verifier works at temperature 0 only: use another, or temperature 0")
        room = limit if request.score else limit - 1
        if n > room and self.bounded:
            raise RequestError(
                f"the prompt has {n} tokens and the model's context is {limit}: shorten it, or ask for "
                "truncation"
            )

    def _fits(self, request: Request, n_prompt: int, branches: int) -> None:
        new = request.new_rows
        if n_prompt + branches * new > self.kv_rows:
            raise RequestError(
                f"{n_prompt} prompt tokens and {branches} x {new} new ones need more KV than "
                f"the {self.kv_rows} rows that fit the memory limit: raise the limit or ask for fewer tokens"
            )

    def cancel(self, seq: Seq) -> None:
        """End a sequence now; its pages are freed at once."""
        if not seq.finish:
            self._end(seq, "cancelled")

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    # ------------------------------------------------------------------ one step

    def step(self) -> list[Event]:
        """Run one step; returns what became known. Safe to call when idle."""
        works = self._schedule()
        if not works:
            if self.busy:
                raise RuntimeError("the scheduler planned no rows although sequences wait")
            return []
        joined: list[Seq] = []  # branches that start in this step
        try:
            return self._run(works, joined)
        except BaseException:  # Ctrl-C included: rows may be booked that were never written
            for seq in [*(w.seq for w in works), *joined]:
                seq.torn = True
                self._end(seq, "cancelled")
            raise

    def _run(self, works: list[_Work], joined: list[Seq]) -> list[Event]:
        self._draft(works)
        rows, taps = self._rows(works)
        kvs = [w.seq.kv for w in works]
        out = self.runner.run(rows, kvs, taps)
        self._collect(works, out.taps)
        events: list[Event] = []
        accepts: list[Accept] = []
        places = _Places()
        for w in works:
            seq, accept, kept = w.seq, Accept([], -1), list(range(w.take))
            if seq.request.score:
                self._score(w, out.logits)
                events.append(Event(seq, [], [], "", seq.finish))
            elif w.last:
                if seq.id in self.siblings:  # the prompt's last row serves every branch
                    places.add(self.store, seq.kv, w.row, kept)
                    self.runner.commit(*places.take())
                    kept = []
                    branches, seq.branches = self.siblings.pop(seq.id), 1
                    joined += branches
                    for s in branches:
                        self._branch(seq, s)
                    events += [self._advance(s, w, out.logits)[1] for s in branches]
                accept, event = self._advance(seq, w, out.logits)
                events.append(event)
                kept += [w.take + i for i in accept.path[: max(len(event.tokens) - 1, 0)]]
            accepts.append(accept)
            places.add(self.store, seq.kv, w.row, kept)
        if places.n:
            self.runner.commit(*places.take())
        self._observe(works, accepts, out.logits)
        for w in works:
            self._barrier(w.seq, w.barrier)
        for s in joined:
            self._barrier(s, self._next_barrier(s.n_prompt, s.kv.length - 1))
        for e in events:
            if e.finish:
                self._end(e.seq, e.finish)
        return events

    def _schedule(self) -> list[_Work]:
        room = Room(STEP_ROWS, self.kv_rows - sum(s.need for s in self.running))
        plan = self.methods.sched.plan(self.waiting, self.running, room)
        for seq in plan.admit:
            self.waiting.remove(seq)
            self.running.append(seq)
            self._attach(seq)
        if plan.admit:
            self._make_room()
        works = []
        for seq, n in plan.rows:
            length = seq.kv.length
            barrier = self._next_barrier(seq.n_prompt, length)
            take = min(n, len(seq.tokens) - length)
            if self.clip:
                take = min(take, barrier - length)
            if take > 0:
                works.append(_Work(seq, take, length + take == len(seq.tokens), barrier))
        return works

    def _make_room(self) -> None:
        """Let the reuse method give up states until what it holds and what is promised to running
        sequences fit the limit together."""
        room = (self.kv_rows - sum(s.need for s in self.running)) * self.store.row_bytes
        own = sum(self.store.bytes_of(s.kv) for s in self.running)
        while self.store.held - own > room and self.methods.reuse.shrink():
            pass

    def _attach(self, seq: Seq) -> None:
        """Start from stored rows where there are any. The last prompt token always runs, for its logits;
        so do the rows whose queries a policy wants to see."""
        if seq.request.score or not self.shareable:
            return
        again = max([1, self.q_rows, *(t.recompute for t in self.methods.traits)])
        span: Span | None = self.methods.reuse.match(seq.tokens, seq.n_prompt - again)
        if span is None or span.n <= 0:
            return
        kv = self.store.fork(span.kv)
        self.store.cut(kv, span.n)
        self.store.free(seq.kv)
        seq.kv = kv
        seq.counts.reused = span.n
        # the state may have been offered at the end of its own prompt, before a barrier there was acted on
        self._barrier(seq, self._next_barrier(seq.n_prompt, span.n - 1))

    def _next_barrier(self, n_prompt: int, length: int) -> int:
        own = FOREVER
        if self.seals and length < n_prompt:
            own = min((length // PROMPT_GRID + 1) * PROMPT_GRID, n_prompt)
        elif self.seals:
            own = (length // DECODE_GRID + 1) * DECODE_GRID
        return min(own, int(self.methods.kv.barrier(n_prompt, length)))

    def _draft(self, works: list[_Work]) -> None:
        able, depth = [], []
        for w in works:
            seq = w.seq
            if not w.last or seq.request.score or seq.id in self.siblings:
                continue
            left = seq.request.max_tokens - seq.n_new - 1
            if self.clip:
                left = min(left, w.barrier - seq.kv.length - w.take)
            able.append(w)
            depth.append(max(left, 0))
        drafts = self.methods.draft.propose([w.seq for w in able], depth)
        for w, k, draft in zip(able, depth, drafts, strict=True):
            forced = self._forced(w.seq)[:k]
            if forced:
                draft = Draft.chain(forced)
                w.seq.counts.forced += len(forced)
            w.draft = draft.clip(k)
            if w.draft.n:
                w.seq.counts.drafted += int(w.draft.depths().max())

    def _forced(self, seq: Seq) -> list[int]:
        try:
            return seq.constraint.forced()
        except RequestError:
            return []  # the mask, asked next, tells why and ends this request alone

    def _rows(self, works: list[_Work]) -> tuple[Rows, bool]:
        n_rows = sum(w.take + w.draft.n for w in works)
        if n_rows > self._buffer.shape[1]:
            self._buffer = np.zeros((6, 2 * n_rows), np.int32)
        ids, pos, span, index, parent, want = rows = self._buffer[:, :n_rows]
        want[:] = 0
        at = n_want = 0
        taps = self.hidden
        for i, w in enumerate(works):
            seq, first, n = w.seq, w.seq.kv.length, w.draft.n
            w.row, w.logit = at, n_want
            mid, end = at + w.take, at + w.take + n
            if end == at + 1:  # one number costs less than a slice of one
                ids[at] = seq.tokens[first]
                pos[at] = seq.kv.next_pos
                index[at] = i
                span[at] = max(seq.kv.next_pos + 1, seq.n_prompt)
            else:
                known = slice(at, mid)
                ids[known] = seq.tokens[first : first + w.take]
                pos[known] = range(seq.kv.next_pos, seq.kv.next_pos + w.take)
                parent[known] = range(at - 1, mid - 1)
                index[at:end] = i
            parent[at] = -1
            if seq.request.score:
                want[at:mid] = 1
                n_want += w.take
            elif w.last:
                want[mid - 1] = 1
                n_want += 1 + n
            if n:
                ids[mid:end] = w.draft.tokens
                pos[mid:end] = pos[mid - 1] + w.draft.depths()
                parent[mid:end] = np.where(w.draft.parent < 0, mid - 1, mid + w.draft.parent)
                want[mid:end] = 1
                seq.counts.draft_rows += n
            if end > at + 1:
                np.maximum(pos[at:end] + 1, seq.n_prompt, out=span[at:end])
            at = end
            if first < seq.n_prompt:
                seq.counts.prompt_rows += min(w.take, seq.n_prompt - first)
                taps = taps or first + w.take > seq.n_prompt - self.q_rows
        return Rows(*rows), taps

    def _collect(self, works: list[_Work], taps: dict[str, NDArray[Any]]) -> None:
        """Keep the rotated queries of the last prompt rows until the policy has seen them."""
        if "q" not in taps:
            return
        for w in works:
            start = max(w.seq.n_prompt - self.q_rows, w.seq.kv.length)
            stop = min(w.seq.n_prompt, w.seq.kv.length + w.take)
            if start < stop:
                at = w.row + start - w.seq.kv.length
                new = taps["q"][:, at : at + stop - start].transpose(0, 2, 1, 3)  # (L, heads, rows, d)
                held = w.seq.taps.get("q")
                w.seq.taps["q"] = new.copy() if held is None else np.concatenate([held, new], axis=2)

    def _branch(self, leader: Seq, s: Seq) -> None:
        """A sibling starts where the leader's prompt ends."""
        self.store.free(s.kv)
        s.kv = self.store.fork(leader.kv)
        s.counts.reused = leader.n_prompt
        s.taps = dict(leader.taps)
        self.running.append(s)

    def _score(self, w: _Work, logits: NDArray[Any]) -> None:
        seq = w.seq
        first = seq.kv.length
        for i in range(w.take):
            if first + i + 1 < len(seq.tokens):
                seq.logprobs.append(logprob(logits[w.logit + i], seq.tokens[first + i + 1]))
        if first + w.take == len(seq.tokens):
            seq.finish = "stop"

    def _advance(self, seq: Seq, w: _Work, every: NDArray[Any]) -> tuple[Accept, Event]:
        """Choose this step's tokens."""
        logits = every[w.logit : w.logit + 1 + w.draft.n]
        try:
            target = NodeTarget(seq, w.draft, logits, self.methods.shape, self.tokenizer.n_vocab)
            accept = self.methods.verify.verify(target, w.draft)
        except RequestError as e:  # a grammar that grew too complex harms no other request
            seq.error = str(e)
            return Accept([], -1), Event(seq, [], [], "", "error")
        new = [int(w.draft.tokens[i]) for i in accept.path] + [accept.bonus]
        at = [0, *(i + 1 for i in accept.path)]  # logits row that gave each token
        text, finish, taken = "", "", 0
        stream = self.texts[seq.id]
        for token, row in zip(new, at, strict=True):
            seq.tokens.append(token)
            taken += 1
            seq.drafted.append(taken <= len(accept.path))
            seq.constraint.advance([token])
            if seq.request.logprobs:
                seq.logprobs.append(logprob(logits[row], token))
            if token in self.eos and not seq.request.ignore_eos:
                finish = "stop"
            else:
                text += stream.push(token)
                if stream.stopped:
                    finish = "stop"
                elif seq.n_new >= seq.request.max_tokens:  # `submit` ended it with the context
                    finish = "length"
            if finish:
                break
        if finish:
            text += stream.flush()
        seq.counts.steps += 1
        seq.counts.accepted += min(taken, len(accept.path))
        tokens = new[:taken]
        return accept, Event(seq, tokens, seq.drafted[-taken:], text, finish)

    def _observe(self, works: list[_Work], accepts: list[Accept], logits: NDArray[Any]) -> None:
        """Tell the drafter what became of its drafts."""
        done = [(w, a) for w, a in zip(works, accepts, strict=True) if w.last and not w.seq.request.score]
        taps = []
        for w, _ in done:
            rows = logits[w.logit : w.logit + 1 + w.draft.n]
            taps.append({f"top{self.top}": self.runner.top(rows, self.top)} if self.top else {})
        self.methods.draft.observe(
            [w.seq for w, _ in done], [w.draft for w, _ in done], [a for _, a in done], taps
        )

    def _barrier(self, seq: Seq, barrier: int) -> None:
        """Once a barrier is reached: offer the state for reuse, let the policy choose, seal the rest."""
        kv = seq.kv
        if kv.length < barrier:
            return
        if kv.length >= seq.n_prompt and not seq.offered:
            self._offer(seq, seq.n_prompt)
        plan = None
        if int(self.methods.kv.barrier(seq.n_prompt, barrier - 1)) == barrier:
            plan = self.methods.kv.plan(self.store.view(kv, seq.n_prompt), seq.taps)
            seq.taps = {}
        self.store.seal(kv, plan, self.methods.kv.traits.moves)  # what the plan leaves out is never packed
        self._make_room()  # pages that a state shared with this sequence may be its own now

    def _offer(self, seq: Seq, n: int) -> None:
        """Hand the state of the first n tokens to the reuse method, unless rows of it were dropped."""
        if not self.shareable or seq.kv.dropped or seq.request.score or seq.torn:
            return
        seq.offered = True
        kv = self.store.fork(seq.kv)
        self.store.cut(kv, n)
        self.methods.reuse.store(tuple(seq.tokens[:n]), kv, PROMPT_GRID)

    def _end(self, seq: Seq, finish: str) -> None:
        seq.finish = finish
        if seq in self.waiting:
            self.waiting.remove(seq)
        if seq in self.running:
            self.running.remove(seq)
        for other in self.siblings.pop(seq.id, []):
            self._end(other, finish)
        for others in self.siblings.values():
            if seq in others:
                others.remove(seq)
        # without barriers a row's value does not depend on when it was computed, so answers are reusable
        plain = self._next_barrier(seq.n_prompt, 0) >= FOREVER
        if plain and seq.kv.length:
            self._offer(seq, seq.kv.length)
        self.texts.pop(seq.id, None)
        seq.kv_bytes = self.store.bytes_of(seq.kv)
        self.store.free(seq.kv)
        self._make_room()

    # ------------------------------------------------------------------ convenience

    def run(self, requests: Sequence[Request]) -> list[list[Seq]]:
        """Submit, step until done, and let the search choose: for each request its sequences, best
        first."""
        groups: list[list[Seq]] = []
        try:
            for r in requests:
                groups.append(self.submit(r))  # noqa: PERF401 - a refusal must not strand the earlier ones
        except RequestError:
            for seq in (s for g in groups for s in g):
                self.cancel(seq)
            raise
        while any(not s.finish for g in groups for s in g):
            self.step()
        return [[g[i] for i in self.methods.search.choose(g)] for g in groups]

    def close(self) -> None:
        for seq in [*self.running, *self.waiting]:
            self.cancel(seq)
        self.methods.reuse.close()


class _Places:
    """Rows to commit and where, gathered over all sequences for one call."""

    def __init__(self) -> None:
        self._parts: list[tuple[Ints, Any, Ints, Ints]] = []
        self.n = 0

    def add(self, store: Store, kv: SeqKV, first: int, rows: list[int]) -> None:
        """Reserve and commit (in the books) rows `first + rows` of the step for one sequence."""
        if not rows:
            return
        n = len(rows)
        addr, block, slot = store.reserve(kv, n)
        at = np.array([first + r for r in rows], np.int32)
        store.extend(kv, range(kv.next_pos, kv.next_pos + n))
        self._parts.append((at, addr, block, slot))
        self.n += n

    def take(self) -> tuple[Ints, NDArray[np.uint64], Ints, Ints]:
        parts = self._parts
        row, addr, block, slot = (
            parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        )
        self._parts, self.n = [], 0
        return row, addr, block, slot
