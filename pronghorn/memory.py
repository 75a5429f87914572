"""Who holds KV: rows taken from what is stored, sealing at barriers, room made, rows given up and taken back.

The barrier rule: rows are sealed, indexed, quantized, evicted or moved only when the committed length
reaches a barrier, a pure function of position and prompt length, and no step crosses one. Tokens then do
not depend on the drafter, on the tree's shape or on how the prompt was cut into chunks. For the same reason
a sequence that gave up its rows may run them again: they come out as they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from numpy.typing import NDArray

from pronghorn.compose import Composition
from pronghorn.cost import StepCost
from pronghorn.kv.layout import PAGE
from pronghorn.kv.paged import NoPages, Pages
from pronghorn.kv.store import Store
from pronghorn.kv.tiers import NoSwap, Swap
from pronghorn.kv.view import Runs
from pronghorn.seq import Seq
from pronghorn.slots import Asking, Reuse
from pronghorn.types import FOREVER, UNSAID, Span

PROMPT_GRID = 2048  # rows between barriers inside the prompt: large products stay large
DECODE_GRID = 64  # rows between barriers after it
FOLLOW = 64  # rows worth waiting for while another sequence computes them
LOOK = 64  # waiting sequences that are compared with those under way


class Memory:
    """The KV of an engine's sequences: `kv_rows` rows of `store` in all.

    seals: rows change form at barriers. shareable: a row may serve another prompt. run: tokens behind stored
    rows, for policies that try something.
    """

    def __init__(
        self, store: Store, methods: Composition, kv_rows: int, seals: bool, shareable: bool, run: Runs
    ) -> None:  # fmt: skip
        self.store, self.kv_rows = store, kv_rows
        self.reuse: Reuse = methods.reuse
        self.policy = methods.kv
        self.seals, self.shareable, self.run = seals, shareable, run
        self.swap: Swap | NoSwap = methods.reside.tier(store)
        self.pages: Pages | NoPages = methods.reside.pages(store)
        self._overlaps: dict[tuple[int, int], int] = {}  # (sequence, leader) -> rows

    # ------------------------------------------------------------------ room

    def free(self, running: Sequence[Seq], exact: bool) -> int:
        """Rows that no running sequence holds; what is stored for reuse counts as free. exact=False may
        leave that out where there is plenty."""
        least = int(self.kv_rows - self.store.held / self.store.row_bytes)
        if not exact and least > self.kv_rows // 2:
            return least
        return int(self.kv_rows - self.store.held_by([s.kv for s in running]) / self.store.row_bytes)

    def make_room(self, rows: int) -> None:
        """Let the reuse method give up states until `rows` more rows fit the limit."""
        limit = (self.kv_rows - rows) * self.store.row_bytes
        while self.store.held > limit and (
            self.swap.settle() or self.reuse.shrink() or self.swap.settle(block=True)
        ):
            pass

    # ------------------------------------------------------------------ barriers

    def next_barrier(self, seq: Seq, length: int) -> int:
        own = FOREVER
        if self.seals and length < seq.n_prompt:
            own = min((length // PROMPT_GRID + 1) * PROMPT_GRID, seq.n_prompt)
        elif self.seals:
            own = (length // DECODE_GRID + 1) * DECODE_GRID
        return min(own, int(seq.methods.kv.barrier(seq.n_prompt, length)))

    def plain(self, seq: Seq) -> bool:
        """Nothing ever happens to its rows: a row's value does not depend on when it was computed."""
        return self.next_barrier(seq, 0) >= FOREVER

    def reached(self, seq: Seq, barrier: int) -> None:
        """Where a barrier is reached: offer the state for reuse, let the policy choose, seal the rest. Where
        that fails the sequence has an `error`, and no rows."""
        kv = seq.kv
        if kv.length < barrier:
            return
        if seq.offered < seq.n_prompt <= kv.length:
            self.offer(seq, seq.n_prompt)
        plan, policy, said, fmt = None, seq.methods.kv, UNSAID, self.store.fmt
        acts = int(policy.barrier(seq.n_prompt, barrier - 1)) == barrier
        asked = self._asked(seq)
        if acts or asked:
            ids = seq.tokens[: kv.length]
            view = self.store.view(kv, seq.n_prompt, seq.request.seed, ids, self.run)
            if acts:
                plan = policy.plan(view, seq.taps(policy.traits))
            if asked and isinstance(fmt, Asking):
                said = fmt.look(view, asked)
            self.pages.read_whole(kv)
        seq.queries = [] if acts else seq.queries
        seq.shown(policy.traits)  # a format asks for those of rows that are not sealed yet
        try:
            self.store.seal(kv, plan, policy.traits.moves, said)  # what the plan leaves out is never packed
        except OSError as error:  # where its pages should lie is no room: that harms no other sequence
            seq.error = error.strerror or str(error)
            self.store.free(kv)
            return
        self.make_room(0)  # pages that a state shared with this sequence may be its own now

    def _asked(self, seq: Seq) -> dict[str, NDArray[Any]]:
        """What the format is shown, if it asks. Inside a prompt only where rows are private: what is sealed
        there may serve longer prompts."""
        kv, traits = seq.kv, self.store.fmt.traits
        if not kv.n_open or (kv.length < seq.n_prompt and "q.new" not in traits.taps):
            return {}
        return seq.taps(traits, kv.length - kv.n_open)

    # ------------------------------------------------------------------ reuse

    def offer(self, seq: Seq, n: int) -> None:
        """Hand the state of the first n tokens to the reuse method, unless rows of it were dropped."""
        request = seq.request
        if not self.shareable or seq.kv.dropped or request.score or request.embed or seq.torn:
            return
        if seq.methods.private:
            return
        seq.offered = n
        kv = self.store.fork(seq.kv)
        self.store.cut(kv, n)
        self.reuse.store(tuple(seq.tokens[:n]), kv, PROMPT_GRID)

    def attach(self, seq: Seq) -> None:
        """Start from stored rows where there are any. The last known token always runs, for its logits; so
        do the rows whose queries a policy wants to see."""
        if seq.ticket is not None:
            self.store.free(seq.kv)
            seq.kv, seq.ticket = self.swap.back(seq.ticket), None
            if seq.kv.length:  # the copy was not lost
                return
            seq.queries = []
        rows = self._usable(seq)
        span: Span | None = self.reuse.match(seq.tokens, rows) if rows > 0 else None
        if span is None or span.n <= 0:
            return
        kv = self.store.fork(span.kv)
        self.store.cut(kv, span.n)
        self.store.free(seq.kv)
        seq.kv = kv
        seq.offered = max(seq.offered, span.n)
        if not seq.counts.preempted:
            seq.counts.reused = span.n
        # the state may have been offered at the end of its own prompt, before a barrier there was acted on
        self.reached(seq, self.next_barrier(seq, span.n - 1))

    def _usable(self, seq: Seq) -> int:
        """Rows that it may take from a stored state."""
        if seq.request.score or seq.request.embed or not self.shareable or seq.methods.private:
            return 0
        if self.plain(seq):
            return len(seq.tokens) - seq.methods.again
        rows = seq.n_prompt - seq.methods.again
        if seq.methods.kv is self.policy:
            return rows
        return min(rows, int(seq.methods.kv.barrier(seq.n_prompt, 0)))  # where its own first acts

    def follows(self, seq: Seq, leaders: Iterable[Seq]) -> bool:
        """Whether it pays to wait: one of `leaders`, prompts under way, is about to store rows that `seq`
        can take. Once such rows are there, they are offered."""
        usable = self._usable(seq)
        if usable < FOLLOW:
            return False
        for leader in leaders:
            key = (seq.id, leader.id)
            if key not in self._overlaps:
                rows = self.reuse.overlap(seq.tokens, leader.tokens[: leader.n_prompt])
                self._overlaps[key] = rows // PROMPT_GRID * PROMPT_GRID if self.seals else rows
            rows = min(self._overlaps[key], usable)
            if rows - leader.offered < FOLLOW:
                continue
            if leader.kv.length < rows:
                return True
            self.offer(leader, leader.kv.length)
        return False

    def forget(self, seq: Seq) -> None:
        """Free what a sequence holds, anywhere."""
        if self._overlaps:
            self._overlaps = {k: v for k, v in self._overlaps.items() if seq.id not in k}
        if seq.ticket is not None:
            self.swap.drop(seq.ticket)
            seq.ticket = None
        seq.kv_bytes, seq.queries = self.store.bytes_of(seq.kv), []
        self.store.free(seq.kv)

    # ------------------------------------------------------------------ preemption

    def give_up(self, seq: Seq, cost: StepCost) -> None:
        """Take a sequence's rows away: to a slower tier, or to run them again, whichever costs less. What is
        run again is offered for reuse first, so that it stays for as long as there is room."""
        n = seq.kv.length
        seq.counts.preempted += 1
        if self.swap.seconds(self.store.bytes_of(seq.kv)) < cost.prefill(n):
            seq.counts.swapped += 1
            seq.ticket = self.swap.out(seq.kv)  # it frees the pages once they are written
            seq.kv = self.store.new()
            return
        if self.plain(seq) and n > seq.offered:
            self.offer(seq, n)
        seq.queries, seq.lost = [], max(seq.lost, n)
        self.store.free(seq.kv)


def room_of(works: int, rows: int) -> int:
    """Rows of pages that `works` sequences may take for `rows` new rows."""
    return rows + works * (PAGE - 1)
