"""One request under way, from the call to its receipt."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pronghorn.llm import Answer, receipt
from pronghorn.nulls import OneBranch
from pronghorn.seq import Seq
from pronghorn.serve.delta import Mailbox
from pronghorn.serve.wake import Bell

if TYPE_CHECKING:
    from pronghorn.engine import Engine, Event


@dataclass(eq=False)
class Run:
    """id: what people call it by. bell: of the loop that reads `box`. quiet: nobody reads deltas, only the
    end counts. logprobs: the caller wants them in deltas.

    The engine's thread owns everything but `dropped` and the mailbox. Times are `time.perf_counter()`.
    """

    id: str
    bell: Bell
    quiet: bool = False
    logprobs: bool = False
    box: Mailbox = field(default_factory=Mailbox)
    seqs: list[Seq] = field(default_factory=list)
    dropped: bool = False  # nobody wants it any more; any thread may say so
    submitted: float = field(default_factory=time.perf_counter)
    queued: float = 0.0  # handed to the engine
    begun: float = 0.0  # the first step that it took part in
    first: float = 0.0  # its first token
    ended: float = 0.0
    created: float = field(default_factory=time.time)
    burst: dict[int, int] = field(default_factory=dict)  # tokens of each branch's first step
    heard: dict[int, float] = field(default_factory=dict)  # when each branch had its last token
    text: dict[int, list[str]] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    receipt: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return all(s.finish for s in self.seqs)

    @property
    def direct(self) -> bool:
        """Every branch is an answer, known by its number from the start: no search chooses among them."""
        return isinstance(self.seqs[0].methods.search, OneBranch)

    def hear(self, event: Event) -> None:
        """Take what one branch brought."""
        seq, n = event.seq, len(event.tokens)
        self.text.setdefault(seq.branch, []).append(event.text)
        if n:
            self.burst.setdefault(seq.branch, n)
        if not self.quiet and self.direct:
            self._put(seq.branch, seq, event.text, n, event.finish)

    def _put(self, index: int, seq: Seq, text: str, n: int, finish: str) -> None:
        """The last n tokens of a branch go to the reader."""
        end = len(seq.tokens)
        self.box.put(
            index,
            text,
            seq.tokens[end - n :],
            seq.origins[len(seq.origins) - n :],
            seq.logprobs[len(seq.logprobs) - n :] if self.logprobs else [],
            seq.tops[len(seq.tops) - n :] if self.logprobs else [],
            finish,
        )

    def words(self, seq: Seq) -> str:
        return "".join(self.text.get(seq.branch, ()))

    def choose(self) -> list[Seq]:
        """The branches that are answers, in order."""
        seqs = self.seqs
        return [seqs[i] for i in seqs[0].methods.search.choose(seqs)[: seqs[0].request.n]]

    def answer(self, engine: Engine, seq: Seq) -> Answer:
        """What one branch came to, once the run has ended."""
        first = (self.first or self.ended) - self.submitted
        later = seq.n_new - self.burst.get(seq.branch, 0)
        stats = receipt(engine, seq, self.ended - self.submitted, first, later)
        return Answer(
            self.words(seq), tuple(seq.new), seq.finish, stats,
            tuple(seq.logprobs) if self.logprobs else (), tuple(seq.tops),
        )  # fmt: skip

    def show_chosen(self, chosen: list[Seq]) -> None:
        """Where a search chose, the reader gets the answers only now."""
        if not self.quiet and not self.direct:
            for i, seq in enumerate(chosen):
                self._put(i, seq, self.words(seq), seq.n_new, seq.finish)

    def end(self, error: BaseException | None) -> None:
        self.box.end(error)
        self.bell.mark(self.box, urgent=True)
