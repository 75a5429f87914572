"""A request and the sequences that serve it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.compose import Composition
from pronghorn.types import Draft, Ints, Origin, Traits

if TYPE_CHECKING:
    from pronghorn.kv.store import SeqKV
    from pronghorn.slots import ConstraintState


Top = tuple[tuple[int, float], ...]  # the likeliest tokens and their log-probabilities, largest first


@dataclass(frozen=True)
class Request:
    """What one caller wants.

    ids: prompt token ids; max_tokens: at most this many new tokens; temperature 0 is greedy; seed: keys
    every random number of the request; stop: texts that end the answer (not part of it); ignore_eos: run
    to max_tokens. n: answers, which share the prompt's rows; all are given, in order. use: methods of its
    own, see `compose.override`.
    """

    ids: tuple[int, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False  # keep the log-probability of every new token
    score: bool = False  # keep those of the prompt's tokens too; max_tokens may be 0 then
    top: int = 0  # so many of the likeliest tokens are kept beside each log-probability
    embed: bool = False  # the mean of the prompt's final states, and no answer
    n: int = 1
    priority: int = 0  # higher goes first
    deadline: float = math.inf  # time.monotonic() by which the answer should be there
    user: str = ""  # whose share of the machine it counts to
    use: tuple[Any, ...] = ()

    @property
    def new_rows(self) -> int:
        """KV rows that an answer may take."""
        return 0 if self.embed else self.max_tokens


@dataclass
class Counts:
    """What happened to one sequence; the material of its receipt."""

    steps: int = 0  # steps that gave it at least one token
    drafted: int = 0
    accepted: int = 0
    prompt_rows: int = 0  # prompt rows run, those run again included
    reused: int = 0  # prompt rows taken from a stored state
    draft_rows: int = 0  # draft rows run
    forced: int = 0  # tokens that the constraint forced
    preempted: int = 0  # times that it gave up its rows to others
    swapped: int = 0  # times that they were kept on a slower tier
    recomputed: int = 0  # rows run again after preemption
    drafters: dict[str, tuple[int, int]] = field(default_factory=dict)  # tokens drafted and accepted, by whom


@dataclass(eq=False)
class Seq:
    """One running sequence.

    tokens: prompt and answer; the KV of `tokens[:kv.length]` is stored. While the prompt runs, the rest
    is prompt; afterwards exactly one token is pending.
    """

    id: int
    request: Request
    tokens: list[int]
    n_prompt: int
    kv: SeqKV
    constraint: ConstraintState
    branch: int = 0  # which of the request's sequences; keys its random stream
    branches: int = 1  # sequences that will start from its prompt, itself included
    finish: str = ""  # "", "stop" (end of text or stop string), "length", "cancelled", "error"
    error: str = ""  # why it ended in error
    counts: Counts = field(default_factory=Counts)
    methods: Composition = field(default_factory=Composition)  # the engine's, and the request's own
    arrival: float = field(default_factory=time.monotonic)
    # natural-log probabilities under the model's own distribution at temperature 1, and the likeliest
    # tokens with theirs: of each new token, and of each prompt token after the first
    logprobs: list[float] = field(default_factory=list)
    tops: list[Top] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)
    prompt_tops: list[Top] = field(default_factory=list)
    pooled: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))  # (width,) sum of final states
    n_pooled: int = 0  # rows in it
    origins: list[Origin] = field(default_factory=list)  # of each new token
    # rotated queries that a policy or a format is to see yet: first row, positions, (L, rows, heads, dim)
    queries: list[tuple[int, Ints, NDArray[Any]]] = field(default_factory=list)
    offered: int = 0  # rows of it that the reuse method was handed, or that came from there
    ticket: Any = None  # its rows on a slower tier while it waits
    lost: int = 0  # rows at its beginning that it once had, and gave up
    torn: bool = False  # a step that included it was cut short: its stored rows cannot be trusted
    kv_bytes: int = 0  # bytes of KV it held when it ended
    _memory: dict[Any, dict[str, Any]] = field(default_factory=dict)

    def memory(self, method: Any) -> dict[str, Any]:
        """The method's own per-sequence state. Values must be rebuilt, not shared, on `fork`: a method
        keeps only what it can derive from `tokens`."""
        return self._memory.setdefault(method, {})

    def taps(self, traits: Traits, first: int = 0) -> dict[str, NDArray[Any]]:
        """What a method with such traits is shown of rows from `first` on: rotated queries "q" (L, heads, r,
        dim), their positions "q_pos" (r,), and "q_at" (r,), which token's each is."""
        parts = []
        for begin, pos, q in self.queries:
            at = np.arange(begin, begin + len(pos), dtype=np.int32)
            mine = self._asks(traits, at) & (at >= first)
            if mine.any():
                parts.append((q, pos, at) if mine.all() else (q[:, mine], pos[mine], at[mine]))
        if not parts:
            return {}
        q, pos, at = zip(*parts, strict=True)
        return {
            "q": np.concatenate(q, axis=1).transpose(0, 2, 1, 3),
            "q_pos": np.concatenate(pos),
            "q_at": np.concatenate(at),
        }

    def _asks(self, traits: Traits, at: Ints) -> NDArray[np.bool_]:
        """Whether a method with such traits asks for the queries of tokens `at`."""
        out = np.full(len(at), "q.new" in traits.taps)
        if "q.answer" in traits.taps:
            out |= at >= self.n_prompt
        for tap in traits.taps:
            if tap.startswith("q.last"):
                out |= (at >= self.n_prompt - int(tap.removeprefix("q.last"))) & (at < self.n_prompt)
        return out

    def shown(self, traits: Traits) -> None:
        """Let queries go that a method with such traits does not ask for."""
        self.queries = [
            (first, pos, q) for first, pos, q in self.queries
            if self._asks(traits, np.arange(first, first + len(pos), dtype=np.int32)).any()
        ]  # fmt: skip

    @property
    def held(self) -> int:
        """KV rows that it holds now, shared ones included."""
        return self.kv.n_rows

    @property
    def need(self) -> int:
        """KV rows that the sequence and its branches may come to hold."""
        return self.n_prompt + self.branches * self.request.new_rows

    @property
    def n_new(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def new(self) -> Sequence[int]:
        return self.tokens[self.n_prompt :]

    @property
    def decoding(self) -> bool:
        """Only the pending token is left to run."""
        return self.kv.length == len(self.tokens) - 1 and self.n_new > 0

    def path(self, extra: Sequence[int] = ()) -> Ints:
        return np.asarray([*self.tokens, *extra], np.int32)


@dataclass
class Work:
    """What one sequence does in a step."""

    seq: Seq
    take: int  # rows of known tokens
    last: bool  # they end with the last known token, so a new one can be chosen
    barrier: int
    rank: int = 0  # place in the scheduler's order
    draft: Draft = field(default_factory=Draft.empty)
    forced: bool = False  # the draft is what the constraint forces
    row: int = 0  # first row in the step
    logit: int = 0  # row of the logits that belongs to the last known token; the nodes' follow
