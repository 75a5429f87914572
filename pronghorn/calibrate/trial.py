"""The texts that a model is looked at with, and whether what was found makes it faster."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pronghorn.bench.prompts import Category, category, encoded
from pronghorn.llm import LLM
from pronghorn.nulls import NoDraft
from pronghorn.quantize import text
from pronghorn.seq import Request

KINDS = ("copying", "renaming", "code", "json", "free-text")  # of prompts that the model answers
EACH = 8  # prompts of each
ANSWER = 96  # new tokens of an answer
BATCH = 8  # answers at once
PIECE = 512  # tokens of a piece of the user's text
OPENING = 64  # of them, the prompt of a trial

Prompts = list[tuple[Category, list[int]]]


@dataclass(frozen=True)
class Material:
    """texts: to look at; prompts: others of the same kind, to be answered in a trial."""

    texts: list[list[int]]
    prompts: Prompts


def own(llm: LLM, seed: int = 0) -> Material:
    """Prompts of several kinds with what the model answers to half of them."""
    prompts: Prompts = []
    for kind in KINDS:
        made = category(kind, EACH, seed, Path())
        turns = [(q, [{"role": "user", "content": q.turns[-1]}]) for q in made.questions]
        prompts += [(made, encoded(llm.tokenizer, q, messages)) for q, messages in turns]
    room = llm.engine.bound.context - ANSWER
    prompts = [(made, ids[-room:]) for made, ids in prompts if room > 0]
    asked, others = prompts[::2], prompts[1::2]
    texts: list[list[int]] = []
    for at in range(0, len(asked), BATCH):
        some = [Request(tuple(ids), ANSWER) for _, ids in asked[at : at + BATCH]]
        texts += [list(seqs[0].tokens) for seqs in llm.engine.run(some)]
    random.Random(seed).shuffle(others)
    return Material(texts, others)


def given(llm: LLM, path: Path) -> Material:
    """Pieces of a text file, and the openings of every fourth. Raises `RequestError`."""
    every = [llm.tokenizer.encode(t) for t in text.read(path)]
    size = min(PIECE, llm.engine.bound.context)
    pieces = [ids[at : at + size] for ids in every for at in range(0, len(ids), size)]
    free = Category("text", (), endless=True)
    if len(pieces) < 4:
        return Material(pieces, [(free, p[:OPENING]) for p in pieces])
    return Material([p for i, p in enumerate(pieces) if i % 4], [(free, p[:OPENING]) for p in pieces[::4]])


@dataclass(frozen=True)
class Trial:
    """Tokens a second of plain decoding and of a drafter, over the same prompts."""

    plain: float
    drafted: float

    @property
    def gain(self) -> float:
        return self.drafted / self.plain if self.plain else 0.0


def trial(llm: LLM, prompts: Prompts, tick: Callable[[int, int], None]) -> Trial:
    """Answer prompts one by one with the drafter of `llm` and without, in turns, after one that warms up."""
    tokens, seconds = [0, 0], [0.0, 0.0]
    for n, (kind, ids) in enumerate([prompts[0], *prompts]):
        tick(n, len(prompts) + 1)
        for i in (0, 1) if n % 2 else (1, 0):
            got, took = _answer(llm, kind, ids, (NoDraft(),) if i == 0 else ())
            if n:
                tokens[i] += got
                seconds[i] += took
    plain, drafted = (n / s if s else 0.0 for n, s in zip(tokens, seconds, strict=True))
    return Trial(plain, drafted)


def _answer(llm: LLM, kind: Category, ids: Sequence[int], use: Sequence[Any]) -> tuple[int, float]:
    """Tokens after the first step's, and the seconds they took."""
    engine = llm.engine
    (seq,) = engine.submit(Request(tuple(ids), ANSWER, ignore_eos=kind.endless, use=(*kind.use, *use)))
    try:
        while not (seq.n_new or seq.finish):
            engine.step()
        start, early = time.perf_counter(), seq.n_new
        while not seq.finish:
            engine.step()
        return seq.n_new - early, time.perf_counter() - start
    finally:
        engine.cancel(seq)
