"""What `pronghorn verify` measures: one model run three ways on the same prompts.

    reference   float64, no methods          what the checkpoint means
    plain       the backend, no methods      what the methods promise to equal
    methods     the backend with them

Hidden states come from one step over a prompt. Logits come from decoding: the plain path's answer is
forced on the other two, so all three are asked for the same next tokens while policies, formats and
selectors act as they do in real use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.compose import Composition
from pronghorn.nulls import NoDraft, OneBranch
from pronghorn.seq import Request
from pronghorn.slots import Bools
from pronghorn.types import Guarantee, Ints, Rows, StepOut, Traits

if TYPE_CHECKING:
    from pronghorn.engine import Engine
    from pronghorn.kv.store import SeqKV
    from pronghorn.model.tokenizer import Tokenizer
    from pronghorn.run.base import Runner
    from pronghorn.slots import ConstraintState

Logits = NDArray[Any]
N_FORCED = 64  # tokens forced in one step: their logits are all in memory
N_LAYERWISE = 256  # prompt rows whose hidden states are compared, at most


@dataclass(frozen=True)
class Probed(Composition):
    """A composition that also taps the hidden states after every layer."""

    n_layers: int = 0

    @property
    def taps(self) -> tuple[str, ...]:
        return (*super().taps, *(f"hidden.{i}" for i in range(self.n_layers)))


def probed(c: Composition, n_layers: int) -> Probed:
    return Probed(**{slot: getattr(c, slot) for slot in c.__dataclass_fields__}, n_layers=n_layers)


class Recorder:
    """A runner that keeps the logits of every step."""

    def __init__(self, inner: Runner) -> None:
        self.inner = inner
        self.ops = inner.ops
        self.logits: list[Logits] = []

    @property
    def read_bytes(self) -> int:
        return self.inner.read_bytes

    @property
    def seen(self) -> Sequence[NDArray[np.uint8]]:
        return self.inner.seen

    def run(self, rows: Rows, kvs: Sequence[SeqKV], taps: bool) -> StepOut:
        out = self.inner.run(rows, kvs, taps)
        if len(out.logits):
            self.logits.append(np.array(out.logits))
        return out

    def commit(self, row: Ints, addr: NDArray[np.uint64], block: Ints, slot: Ints) -> None:
        self.inner.commit(row, addr, block, slot)

    def top(self, logits: NDArray[Any], n: int) -> Ints:
        return self.inner.top(logits, n)


@dataclass
class Script:
    """A walk along given tokens, each the only one allowed; after them anything is."""

    tokens: tuple[int, ...]
    at: int = 0

    def mask(self, out: Bools) -> None:
        out[:] = self.at >= len(self.tokens)
        if self.at < len(self.tokens):
            out[self.tokens[self.at]] = True

    def advance(self, ids: Sequence[int]) -> int:
        for n, token in enumerate(ids):
            if self.at < len(self.tokens) and token != self.tokens[self.at]:
                return n
            self.at += 1
        return len(ids)

    def rollback(self, n: int) -> None:
        self.at -= n

    def fork(self) -> ConstraintState:
        return Script(self.tokens, self.at)

    def forced(self) -> list[int]:
        return list(self.tokens[self.at : self.at + N_FORCED])

    def done(self) -> bool:
        return self.at >= len(self.tokens)


@dataclass(frozen=True)
class Follow:
    """The constraint whose only text is `tokens`."""

    tokens: tuple[int, ...]
    traits = Traits(Guarantee.EXACT)

    def open(self, tokenizer: Tokenizer) -> ConstraintState:
        return Script(self.tokens)


class Bench:
    """An engine to ask for answers and for the logits along a given answer."""

    def __init__(self, engine: Engine, verify: Any) -> None:
        self.engine, self.verify = engine, verify
        self.recorder = Recorder(engine.runner)
        engine.runner = self.recorder

    def greedy(self, ids: Sequence[int], n: int) -> tuple[list[int], Logits]:
        """An answer of at most n tokens, and the logits of every row that was run for one: row i chose
        token i when nothing was drafted."""
        self.recorder.logits = []
        ((seq,),) = self.engine.run([Request(tuple(ids), n)])
        return list(seq.new), np.concatenate(self.recorder.logits)

    def follow(self, ids: Sequence[int], answer: Sequence[int]) -> Logits:
        """(len(answer), n_vocab) logits from which each token of `answer` would be chosen."""
        own = self.engine.methods
        self.engine.methods = replace(
            own, constrain=Follow(tuple(answer)), shape=(), draft=NoDraft(), search=OneBranch(),
            verify=self.verify,
        )  # fmt: skip
        try:
            self.recorder.logits = []
            self.engine.run([Request(tuple(ids), len(answer), ignore_eos=True)])
        finally:
            self.engine.methods = own
        return np.concatenate(self.recorder.logits)[: len(answer)]

    def hidden(self, ids: Sequence[int]) -> dict[int, NDArray[np.float64]]:
        """Layer -> (n, width) states after it, for the layers that run; -1 -> logits of the last row."""
        n = min(len(ids), N_LAYERWISE)
        order = np.arange(n, dtype=np.int32)
        want = np.zeros(n, np.int32)
        want[-1] = 1
        rows = Rows(
            np.asarray(ids[:n], np.int32), order, np.full(n, n, np.int32), np.zeros(n, np.int32),
            order - 1, want,
        )  # fmt: skip
        kv = self.engine.store.new()
        out = self.engine.runner.run(rows, [kv], True)
        self.engine.store.free(kv)
        states = {
            int(name.split(".")[1]): np.asarray(x, np.float64)
            for name, x in out.taps.items()
            if name.startswith("hidden.")
        }
        return {**states, -1: np.asarray(out.logits, np.float64)}


def relative_error(x: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Largest over rows: distance to the reference over the reference's length."""
    length = np.linalg.norm(reference, axis=-1)
    return float((np.linalg.norm(x - reference, axis=-1) / np.maximum(length, 1e-30)).max())


def log_softmax(x: Logits) -> NDArray[np.float64]:
    x = np.asarray(x, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


@dataclass(frozen=True)
class Distance:
    """How far next-token distributions are from the reference's. n: tokens; mean, worst: absolute
    difference of the log-probability of the answer's tokens; kl: mean divergence from the reference, in
    nats; top1: share of tokens at which the likeliest is the same."""

    n: int
    mean: float
    worst: float
    kl: float
    top1: float


def distance(pairs: Sequence[tuple[Logits, Logits, Sequence[int]]]) -> Distance:
    """pairs: (logits, the reference's logits, tokens) of each prompt."""
    gaps, kls, same = [], [], []
    for x, reference, tokens in pairs:
        p, r = log_softmax(x), log_softmax(reference)
        at = np.arange(len(tokens)), np.asarray(tokens)
        gaps.append(np.abs(p[at] - r[at]))
        kls.append((np.exp(r) * (r - p)).sum(axis=-1))
        same.append(x.argmax(axis=-1) == reference.argmax(axis=-1))
    gap, kl, top = (np.concatenate(x) for x in (gaps, kls, same))
    return Distance(len(gap), float(gap.mean()), float(gap.max()), float(kl.mean()), float(top.mean()))


@dataclass(frozen=True)
class Outcome:
    """Greedy answers to one prompt. at: first token that differs, -1 for none; gap: by how much the
    plain path's logit of its own token exceeds that of the other."""

    prompt: int
    tokens: int
    at: int
    gap: float


def compare(prompt: int, plain: Sequence[int], logits: Logits, other: Sequence[int]) -> Outcome:
    """Two answers, and the plain path's logits of each of its tokens."""
    n = min(len(plain), len(other))
    at = next((i for i in range(n) if plain[i] != other[i]), -1 if len(plain) == len(other) else n)
    if at < 0:
        return Outcome(prompt, len(plain), -1, 0.0)
    if at == n:  # one answer ends where the other goes on, without a token that differs
        return Outcome(prompt, len(plain), at, float("inf"))
    return Outcome(prompt, len(plain), at, float(logits[at, plain[at]] - logits[at, other[at]]))
