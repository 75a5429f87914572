"""The engine: one loop, many sequences in a step, every decision taken by a slot.

    submit    tokens in, constraint opened, stored prefix matched
    step      schedule -> clip to barriers -> draft -> run all rows -> shape, mask, verify -> commit ->
              at a barrier: plan, seal and index what is kept

The engine imports no method and asks for no name. It reads traits, and every slot has a null object.

What happens to rows once they are stored, and who may have them, is `pronghorn.memory`'s business. A request
may bring methods of its own; `seq.methods` has them, on top of the engine's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pronghorn.compose import Composition, Facts, override
from pronghorn.cost import StepCost, reads
from pronghorn.drafting import Drafting, count
from pronghorn.errors import MethodError, RequestError
from pronghorn.kv.layout import PAGE
from pronghorn.kv.store import SeqKV, Store
from pronghorn.memory import LOOK, Memory, room_of
from pronghorn.model.bind import Bound
from pronghorn.ops.cpu import _native
from pronghorn.run.base import Runner
from pronghorn.seq import Request, Seq, Top, Work
from pronghorn.slots import ConstraintState, Room
from pronghorn.target import NodeTarget, logprob, logprobs
from pronghorn.text import TextStream
from pronghorn.types import Accept, Ints, Origin, Rows

if TYPE_CHECKING:
    from pronghorn.companion import Companion
    from pronghorn.datastore import Datastore
    from pronghorn.model.tokenizer import Tokenizer

STEP_ROWS = 4096  # rows of one step, at most
BRANCHES = 1024  # answers to one prompt, at most
TOP = 64  # alternatives of a token, at most


@dataclass
class Event:
    """New output of one sequence. origins: where each token came from."""

    seq: Seq
    tokens: list[int]
    origins: list[Origin]
    text: str
    finish: str


class StepInfo(NamedTuple):
    """A step that was run. seconds: by the clock; read_bytes: of KV that attention read, as the runner counts
    them."""

    rows: int
    sequences: int
    seconds: float
    read_bytes: int = 0


@dataclass(frozen=True)
class Prepared:
    """A request that was checked, with its methods and, for each branch, a constraint at its start."""

    request: Request
    ids: list[int]
    methods: Composition
    states: list[ConstraintState]


class Engine:
    """Runs requests over one model, one store and one composition.

    kv_rows: rows of KV that may be held in all. clip=False lets steps cross barriers; only the test that
    shows why the rule exists sets it. companions, stores: further models and datastores, for drafters.
    """

    def __init__(
        self,
        bound: Bound,
        runner: Runner,
        store: Store,
        methods: Composition,
        tokenizer: Tokenizer,
        kv_rows: int,
        eos: Sequence[int],
        clip: bool,
        companions: Mapping[str, Companion],
        stores: Mapping[str, Datastore],
    ) -> None:
        self.bound, self.runner, self.store, self.methods = bound, runner, store, methods
        self.tokenizer, self.kv_rows, self.clip = tokenizer, kv_rows, clip
        self.eos = frozenset(eos)
        self.waiting: list[Seq] = []
        self.running: list[Seq] = []
        self.siblings: dict[int, list[Seq]] = {}  # sequence id -> branches that wait for its prompt
        self.texts: dict[int, TextStream] = {}
        varies = any(r.varies for r in bound.ropes)
        self.facts = Facts(bound.n_layers, bound.context, bound.hard_context, varies, tuple(companions))
        seals = methods.kvfmt.group > 0 or not methods.select.dense
        # a row whose rotation depends on the prompt's length is of no use to another prompt
        self.memory = Memory(store, methods, kv_rows, seals, not varies, self._behind)
        self.cost = StepCost()
        self.drafting = Drafting(runner, self.cost, clip, companions, stores)
        self._seconds = math.inf  # what the step under way may last
        self._ended = math.inf  # when the last step did, if another followed at once
        self._aside = 0.0  # seconds of the step under way that are not for its rows
        self.last = StepInfo(0, 0, 0.0)
        self.prompt_rows = 0  # of all steps so far
        self.hidden = any(t.startswith("hidden.") for t in methods.taps)
        self._ids = 0
        self._buffer = np.zeros((6, 256), np.int32)

    # ------------------------------------------------------------------ requests

    def prepare(self, request: Request) -> Prepared:
        """Check a request and open its constraint; touches nothing that a step does, so another thread may
        call it. Raises `RequestError` and `MethodError`."""
        methods = override(self.methods, request.use, self.facts) if request.use else self.methods
        ids = [request.ids[i] for i in methods.prune.keep(request.ids)] if request.ids else []
        bounded = self.bound.hard_context or not methods.moves  # a text ends with the context
        self._check(request, ids, methods, bounded)
        if bounded and not request.embed:
            most = self.bound.context - len(ids)  # an answer ends with the context, so does its memory
            request = replace(request, max_tokens=min(request.max_tokens, most))
        n = methods.search.branches(request) if request.new_rows else 1
        if n > request.n:
            request = replace(request, logprobs=True)  # what a search chooses by
        self._fits(request, len(ids), n)
        first = methods.constrain.open(self.tokenizer)
        return Prepared(request, ids, methods, [first, *(first.fork() for _ in range(n - 1))])

    def submit(self, request: Request | Prepared) -> list[Seq]:
        """Queue a request; returns its sequences, several where several answers or a search were asked for.
        Raises `RequestError` and `MethodError`."""
        ready = self.prepare(request) if isinstance(request, Request) else request
        seqs = []
        for branch, state in enumerate(ready.states):
            self._ids += 1
            ids = ready.ids
            seq = Seq(
                self._ids, ready.request, list(ids), len(ids), self.store.new(), state, branch,
                methods=ready.methods,
            )  # fmt: skip
            self.texts[seq.id] = TextStream(self.tokenizer, ready.request.stop, ids)
            seqs.append(seq)
        leader = seqs[0]
        if len(seqs) > 1:
            self.siblings[leader.id] = seqs[1:]
            leader.branches = len(seqs)
        self.waiting.append(leader)
        return seqs

    def _check(self, request: Request, ids: list[int], methods: Composition, bounded: bool) -> None:
        n, limit = len(ids), self.bound.context
        if not n:
            raise RequestError("the prompt is empty: give at least one token")
        wrong = [t for t in ids if not 0 <= t < self.bound.n_vocab]
        if wrong:
            raise RequestError(f"token id {wrong[0]} is outside the vocabulary of {self.bound.n_vocab}")
        least = 0 if request.score or request.embed else 1
        if request.max_tokens < least:
            raise RequestError(f"max_tokens is {request.max_tokens}: ask for at least one token")
        if not 0 <= request.temperature < 1e6:
            raise RequestError(f"temperature {request.temperature} is out of range: use 0 (greedy) or more")
        if request.temperature > 0 and methods.verify.traits.greedy:
            raise RequestError("this verifier works at temperature 0 only: use another, or temperature 0")
        if not 1 <= request.n <= BRANCHES or not 0 <= request.top <= TOP:
            raise RequestError(
                f"n is {request.n} and top {request.top}: n is from 1 to {BRANCHES}, top from 0 to {TOP}"
            )
        room = limit - 1 if request.new_rows else limit
        if n > room and bounded:
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
        start = time.perf_counter()
        works = self._schedule()
        if not works:
            if self.busy:
                raise RuntimeError("the scheduler planned no rows although sequences wait")
            return []
        read = sum(reads(w.take, w.seq.kv.length) for w in works)
        joined: list[Seq] = []  # branches that start in this step
        try:
            events = self._run(works, read, joined)
        except BaseException:  # Ctrl-C included: rows may be booked that were never written
            for seq in [*(w.seq for w in works), *joined]:
                seq.torn = True
                self._end(seq, "cancelled")
            raise
        rows = sum(w.take + w.draft.n for w in works)
        seconds = time.perf_counter() - start
        self.last = StepInfo(rows, len(works), seconds, self.runner.read_bytes)
        # what a caller does between two steps delays the next one, whatever its rows
        between = start - self._ended
        late = between if 0 < between < 2 * seconds else 0.0
        own = seconds - self.drafting.seconds - self._aside
        self.cost.observe(rows, read + self.drafting.read, own + late)
        self._aside = 0.0
        self._ended = time.perf_counter() if self.running else math.inf
        return events

    def _run(self, works: list[Work], read: int, joined: list[Seq]) -> list[Event]:
        self.drafting.draft(works, self._seconds, STEP_ROWS, read)
        self.memory.make_room(room_of(len(works), sum(w.take for w in works)))
        rows, taps = self._rows(works)
        kvs = [w.seq.kv for w in works]
        out = self.runner.run(rows, kvs, taps)
        self.memory.pages.used(kvs, self.runner.seen)
        self._collect(works, rows.pos, out.taps)
        events: list[Event] = []
        accepts: list[Accept] = []
        places = _Places()
        for w in works:
            seq, accept, kept = w.seq, Accept([], -1), list(range(w.take))
            if seq.request.score:
                self._score(w, out.logits)
            if w.last and not seq.request.new_rows:
                events.append(Event(seq, [], [], "", "stop"))
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
            if seq.methods.q_answer and len(kept) > w.take:  # rows of drafts that stand
                self._tap(seq, seq.kv.length + w.take, w.row + np.array(kept[w.take :]), rows.pos, out.taps)
            places.add(self.store, seq.kv, w.row, kept)
        if places.n:
            self.runner.commit(*places.take())
        self.drafting.observe(works, accepts, out.logits)
        for w in works:
            self.memory.reached(w.seq, w.barrier)
            if w.seq.offered < w.seq.n_prompt <= w.seq.kv.length:
                self.memory.offer(w.seq, w.seq.n_prompt)
        for s in joined:
            self.memory.reached(s, self.memory.next_barrier(s, s.kv.length - 1))
        for s in [*(w.seq for w in works), *joined]:
            if s.error and not any(e.seq is s and e.finish for e in events):
                events.append(Event(s, [], [], "", "error"))
        ending = time.perf_counter()
        for e in events:
            if e.finish:
                self._end(e.seq, e.finish)
        self.memory.pages.settle()
        self._aside += time.perf_counter() - ending
        return events

    def _schedule(self) -> list[Work]:
        memory = self.memory
        leaders = [s for s in self.running if s.kv.length < s.n_prompt]
        waiting: Sequence[Seq] = self.waiting
        if waiting and leaders:
            held_back = {s.id for s in waiting[:LOOK] if memory.follows(s, leaders)}
            waiting = [s for s in waiting if s.id not in held_back]
        room = Room(STEP_ROWS, memory.free(self.running, bool(waiting)), self.cost)
        plan = self.methods.sched.plan(waiting, self.running, room)
        self._seconds = plan.seconds
        for seq in plan.preempt:
            self.drafting.forget(seq)
            memory.give_up(seq, self.cost)
            self.running.remove(seq)
            self.waiting.insert(0, seq)
        for seq in plan.admit:
            if not memory.follows(seq, leaders):
                self.waiting.remove(seq)
                self.running.append(seq)
                memory.attach(seq)
                leaders.append(seq)
        running = {s.id for s in self.running}
        works: list[Work] = []
        for seq, n in plan.rows:
            length = seq.kv.length
            barrier = memory.next_barrier(seq, length)
            take = min(n, len(seq.tokens) - length) if seq.id in running else 0
            if self.clip:
                take = min(take, barrier - length)
            if take > 0:
                works.append(Work(seq, take, length + take == len(seq.tokens), barrier, len(works)))
        if len(works) > 1:  # who shares pages stands side by side: a runner reads them once
            works.sort(key=lambda w: w.seq.kv.sealed[0].blocks.tobytes() + w.seq.kv.open.tobytes())
        return works

    def _rows(self, works: list[Work]) -> tuple[Rows, bool]:
        n_rows = sum(w.take + w.draft.n for w in works)
        if n_rows > self._buffer.shape[1]:
            self._buffer = np.zeros((6, 2 * n_rows), np.int32)
        ids, pos, span, index, parent, want = rows = self._buffer[:, :n_rows]
        want[:] = 0
        at = n_want = 0
        taps = self.hidden or any(w.seq.request.embed or w.seq.methods.q_answer for w in works)
        for i, w in enumerate(works):
            seq, first, n = w.seq, w.seq.kv.length, w.draft.n
            w.row, w.logit = at, n_want
            mid, end = at + w.take, at + w.take + n
            if w.take == 1:  # one number costs less than a slice of one
                ids[at] = seq.tokens[first]
                pos[at] = seq.kv.next_pos
                index[at] = i
                span[at] = max(seq.kv.next_pos + 1, seq.n_prompt)
            else:
                known = slice(at, mid)
                ids[known] = seq.tokens[first : first + w.take]
                pos[known] = range(seq.kv.next_pos, seq.kv.next_pos + w.take)
                parent[known] = range(at - 1, mid - 1)
                index[known] = i
                np.maximum(pos[known] + 1, seq.n_prompt, out=span[known])
            parent[at] = -1
            if seq.request.score and first < seq.n_prompt:
                want[at:mid] = 1
                n_want += w.take
                w.logit = n_want - 1
            elif w.last:
                want[mid - 1] = 1
                n_want += 1
            n_want += n
            if n:
                _native.hang(rows, mid - 1, seq.n_prompt, w.draft.tokens, w.draft.parent)
                seq.counts.draft_rows += n
            at = end
            if first < seq.n_prompt:
                here = min(w.take, seq.n_prompt - first)
                seq.counts.prompt_rows += here
                self.prompt_rows += here
                taps = taps or first + w.take > seq.n_prompt - seq.methods.q_rows
            seq.counts.recomputed += max(0, min(first + w.take, seq.lost) - first)
        return Rows(*rows), taps

    def _collect(self, works: list[Work], pos: Ints, taps: dict[str, NDArray[Any]]) -> None:
        """Keep the rotated queries that a policy wants until it has seen them, and the sums of final states
        that embeddings are made of."""
        for w in works if taps else ():
            seq, first = w.seq, w.seq.kv.length
            if seq.request.embed:
                at = w.row + max(0, seq.n_pooled - first)  # rows run again count once
                for state in taps["final"][at : w.row + w.take]:  # one by one: the same sum for any chunks
                    seq.pooled = seq.pooled + state if seq.n_pooled else np.asarray(state, np.float64)
                    seq.n_pooled += 1
            start, stop = first, first + w.take
            if not seq.methods.q_new:
                start = max(seq.n_prompt - seq.methods.q_rows, first)
            if not seq.methods.q_answer:
                stop = min(seq.n_prompt, stop)
            if "q" in taps and start < stop:
                self._tap(seq, start, np.arange(start, stop) - first + w.row, pos, taps)

    def _tap(
        self, seq: Seq, first: int, rows: NDArray[Any], pos: Ints, taps: dict[str, NDArray[Any]]
    ) -> None:  # fmt: skip
        """Keep the queries of rows of the step, which become a sequence's rows from `first` on."""
        seq.queries.append((first, pos[rows], taps["q"][:, rows]))

    def _behind(self, kv: SeqKV, ids: Sequence[int], n_prompt: int) -> dict[str, NDArray[Any]]:
        """Run tokens, no more than a step has, behind the rows of a copy, and commit them; their queries, as
        `Seq.taps` gives them. Where there is no room for them the limit is exceeded while the copy lives."""
        start, n = time.perf_counter(), len(ids)
        self.memory.make_room(room_of(1, n))
        at, none = np.arange(kv.length, kv.length + n, dtype=np.int32), np.zeros(n, np.int32)
        pos = at + np.int32(kv.next_pos - kv.length)
        span = np.maximum(pos + 1, n_prompt).astype(np.int32)
        rows = Rows(np.array(ids, np.int32), pos, span, none, np.arange(-1, n - 1, dtype=np.int32), none)
        q = np.array(self.runner.run(rows, [kv], True).taps["q"])
        self.memory.pages.used([kv], self.runner.seen)
        places = _Places()
        places.add(self.store, kv, 0, list(range(n)))
        self.runner.commit(*places.take())
        self._aside += time.perf_counter() - start
        return {"q": q.transpose(0, 2, 1, 3), "q_pos": pos, "q_at": at}

    def _branch(self, leader: Seq, s: Seq) -> None:
        """A sibling starts where the leader's prompt ends."""
        self.store.free(s.kv)
        s.kv = self.store.fork(leader.kv)
        s.counts.reused = leader.n_prompt
        s.queries = list(leader.queries)
        self.running.append(s)

    def _score(self, w: Work, logits: NDArray[Any]) -> None:
        """Log-probabilities of the prompt's tokens, but for rows run again."""
        seq = w.seq
        first = seq.kv.length
        if first >= seq.n_prompt:
            return
        for i in range(w.take):
            at = first + i + 1  # the token that the row speaks of
            if len(seq.prompt_logprobs) < at < seq.n_prompt:
                row = logits[w.logit - w.take + 1 + i]
                seq.prompt_logprobs.append(logprob(row, seq.tokens[at]))
                if seq.request.top:
                    seq.prompt_tops.append(self._top(row, seq.request.top))

    def _top(self, logits: NDArray[Any], n: int) -> Top:
        """The n likeliest tokens and their log-probabilities, of one row of logits."""
        row = logits[: self.tokenizer.n_vocab]
        ids = [int(i) for i in self.runner.top(row[None], n)[0] if i >= 0]
        return tuple(zip(ids, logprobs(logits, ids), strict=True))

    def _advance(self, seq: Seq, w: Work, every: NDArray[Any]) -> tuple[Accept, Event]:
        """Choose this step's tokens."""
        logits = every[w.logit : w.logit + 1 + w.draft.n]
        try:
            target = NodeTarget(seq, w.draft, logits, seq.methods.shape, self.tokenizer.n_vocab)
            accept = seq.methods.verify.verify(target, w.draft)
        except (RequestError, MethodError) as e:  # what one request asked for harms no other
            seq.error = str(e)
            return Accept([], -1), Event(seq, [], [], "", "error")
        path = accept.path
        new = [*w.draft.tokens[path].tolist(), accept.bonus] if path else [accept.bonus]
        text, finish, taken = "", "", 0
        request, stream, left = seq.request, self.texts[seq.id], seq.request.max_tokens - seq.n_new
        for token in new:
            seq.tokens.append(token)
            if request.logprobs:
                row = logits[path[taken - 1] + 1 if taken else 0]  # that gave the token
                seq.logprobs.append(logprob(row, token))
                if request.top:
                    seq.tops.append(self._top(row, request.top))
            taken += 1
            if token in self.eos and not request.ignore_eos:
                finish = "stop"
            else:
                text += stream.push(token)
                if stream.stopped:
                    finish = "stop"
                elif taken >= left:  # `submit` ended it with the context
                    finish = "length"
            if finish:
                break
        if finish:
            text += stream.flush()
        tokens, stood = new[:taken], min(taken, len(path))
        seq.constraint.advance(tokens)
        origins = [Origin.FORCED if w.forced else Origin.DRAFTED] * stood + [Origin.MODEL] * (taken - stood)
        seq.origins += origins
        seq.counts.steps += 1
        if stood:
            count(w, 0, stood)
        return accept, Event(seq, tokens, origins, text, finish)

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
        if self.memory.plain(seq) and seq.kv.length > seq.offered:  # answers are reusable too
            self.memory.offer(seq, seq.kv.length)
        self.texts.pop(seq.id, None)
        self.drafting.forget(seq)
        self.memory.forget(seq)

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
        return [[g[i] for i in g[0].methods.search.choose(g)] for g in groups]

    def close(self) -> None:
        for seq in [*self.running, *self.waiting]:
            self.cancel(seq)
        self.drafting.close()
        self.memory.swap.close()
        self.methods.reuse.close()
        self.memory.pages.close()


class _Places:
    """Rows to commit and where, gathered over all sequences for one call."""

    def __init__(self) -> None:
        self._held: tuple[list[int], ...] = ([], [], [], [])  # rows, addresses, blocks, rows of the pages

    @property
    def n(self) -> int:
        return len(self._held[0])

    def add(self, store: Store, kv: SeqKV, first: int, rows: Sequence[int]) -> None:
        """Reserve and commit (in the books) rows `first + rows` of the step for one sequence."""
        if not rows:
            return
        store.open_pages(kv, len(rows))
        row, addr, block, slot = self._held
        row += [first + r for r in rows]
        at, end = kv.n_open, kv.n_open + len(rows)
        while at < end:  # page by page
            page, used = divmod(at, PAGE)
            n = min(PAGE - used, end - at)
            addr += [kv.open_addr.item(page)] * n
            block += [kv.open.item(page)] * n
            slot += range(used, used + n)
            at += n
        store.extend(kv, range(kv.next_pos, kv.next_pos + len(rows)))

    def take(self) -> tuple[Ints, NDArray[np.uint64], Ints, Ints]:
        row, addr, block, slot = self._held
        self._held = ([], [], [], [])
        at = np.array(addr, np.uint64)
        return np.array(row, np.int32), at, np.array(block, np.int32), np.array(slot, np.int32)
