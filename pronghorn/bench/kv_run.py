"""Talks with a model whose KV some method compresses: what it says, what it holds, what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pronghorn.bench.kv_tasks import Talk, Turn
from pronghorn.nulls import EXACT
from pronghorn.seq import Request

if TYPE_CHECKING:
    from pronghorn.llm import LLM
    from pronghorn.model.tokenizer import Tokenizer
    from pronghorn.seq import Seq

BATCH = 8  # talks at once
AHEAD = 64  # tokens of what must come that are said at once


class Place(NamedTuple):
    """Where a talk is. must, at: tokens that come next, from number `at` on, () where the model has the word;
    answers: so far; over: nothing is left to say."""

    must: tuple[int, ...]
    at: int
    answers: list[list[int]]
    over: bool


class Script:
    """Says what a talk's turns ask and leaves the answers to the model, but ends one that is too long."""

    def __init__(self, turns: Sequence[Turn], end: int) -> None:
        self.turns, self.end = turns, end
        self.said: list[int] = []

    def place(self) -> Place:
        at = 0
        answers: list[list[int]] = []
        for turn in self.turns:
            at += len(turn.ask)
            if len(self.said) < at:
                return Place(turn.ask, len(self.said) - at + len(turn.ask), answers, False)
            if not turn.limit:
                continue
            answer = self.said[at : at + turn.limit + 1]
            if self.end not in answer:
                late = len(answer) == turn.limit
                return Place((self.end,) if late else (), 0, [*answers, answer], False)
            answers.append(answer[: answer.index(self.end)])
            at += len(answers[-1]) + 1
        return Place((), 0, answers, True)

    def forced(self) -> list[int]:
        now = self.place()
        return list(now.must[now.at : now.at + AHEAD])

    def mask(self, out: Any) -> None:
        now = self.place()
        out[:] = not now.must
        if now.must:
            out[now.must[now.at]] = True

    def advance(self, ids: Sequence[int]) -> int:
        for i, token in enumerate(ids):
            now = self.place()
            if now.must and token != now.must[now.at]:
                return i
            self.said.append(token)
        return len(ids)

    def rollback(self, n: int) -> None:
        del self.said[len(self.said) - n :]

    def fork(self) -> Script:
        new = Script(self.turns, self.end)
        new.said = list(self.said)
        return new

    def done(self) -> bool:
        return False


@dataclass(frozen=True)
class Scripted:
    """A constraint of one request."""

    turns: tuple[Turn, ...]
    end: int
    slot = "constrain"
    traits = EXACT

    def open(self, tokenizer: Tokenizer) -> Script:
        return Script(self.turns, self.end)


@dataclass
class Heard:
    """answers: tokens of each, ends left out; logprobs: of all tokens behind the prompt, where no answer was
    awaited. held, end: bytes of KV behind the prompt and at the end."""

    answers: list[list[int]] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    held: int = 0
    end: int = 0


@dataclass
class Reading:
    """Bytes of KV read in steps of decoding, of one row for each sequence, and how many rows those were."""

    bytes: int = 0
    rows: int = 0


def hold(llm: LLM, talks: Sequence[Talk], reading: Reading) -> list[Heard]:
    """Run talks, some at a time."""
    out = []
    for start in range(0, len(talks), BATCH):
        out += _hold(llm, talks[start : start + BATCH], reading)
    return out


def _hold(llm: LLM, talks: Sequence[Talk], reading: Reading) -> list[Heard]:
    engine = llm.engine
    seqs: list[Seq] = []
    heard = [Heard() for _ in talks]
    try:
        for talk in talks:
            seqs += engine.submit(_request(talk))
        while not all(s.finish for s in seqs):
            decoding = all(s.kv.length >= s.n_prompt for s in seqs if not s.finish)
            engine.step()
            if decoding and engine.last.rows == engine.last.sequences:
                reading.bytes += engine.last.read_bytes
                reading.rows += engine.last.rows
            for seq, h in zip(seqs, heard, strict=True):
                if not (seq.finish or h.held) and seq.kv.length >= seq.n_prompt:
                    h.held = engine.store.bytes_of(seq.kv)
                if not seq.finish and _script(seq).place().over:
                    engine.cancel(seq)
    finally:
        for seq in seqs:
            engine.cancel(seq)
    for seq, talk, h in zip(seqs, talks, heard, strict=True):
        h.answers = _script(seq).place().answers
        h.logprobs = seq.logprobs if talk.judged else []
        h.end = seq.kv_bytes
        h.held = h.held or h.end
    return heard


def _script(seq: Seq) -> Script:
    assert isinstance(seq.constraint, Script)
    return seq.constraint


def _request(talk: Talk) -> Request:
    most = sum(len(t.ask) + (t.limit + 1 if t.limit else 0) for t in talk.turns)
    use = (Scripted(talk.turns, talk.end),)
    return Request(talk.ids, most, ignore_eos=True, logprobs=bool(talk.judged), use=use)
