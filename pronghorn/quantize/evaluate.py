"""How far a quantized model is from the one it was made from: perplexity and divergence on the same text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.types import Rows

if TYPE_CHECKING:
    from pronghorn.engine import Engine

LENGTH = 256  # tokens of a sequence, at most


@dataclass(frozen=True)
class Loss:
    """n: tokens predicted; plain, ppl: perplexity of the first and the second model; ratio: second over
    first; spread: standard error of the ratio over sequences; kl: mean divergence of the second's next-token
    distribution from the first's, in nats; top1: share of tokens at which both find the same likeliest."""

    n: int
    plain: float
    ppl: float
    ratio: float
    spread: float
    kl: float
    top1: float


def compare(plain: Engine, other: Engine, ids: NDArray[np.int32]) -> Loss:
    """ids: (n_seqs, length), each on its own."""
    return against((logp(plain, seq) for seq in ids), other, ids)


def against(plain: Iterable[NDArray[Any]], other: Engine, ids: NDArray[np.int32]) -> Loss:
    """As `compare`, given the first model's log-probabilities of each sequence."""
    rows = np.asarray([_one(p, logp(other, seq), seq) for p, seq in zip(plain, ids, strict=True)])
    a, b, kl, top1 = rows.mean(axis=0)
    gap = rows[:, 1] - rows[:, 0]
    error = float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else 0.0
    ratio = float(np.exp(b - a))
    return Loss(
        len(ids) * (ids.shape[1] - 1), float(np.exp(a)), float(np.exp(b)), ratio, ratio * error,
        float(kl), float(top1),
    )  # fmt: skip


def _one(p: Any, q: Any, seq: NDArray[np.int32]) -> tuple[float, float, float, float]:
    """Mean surprise of both, divergence and agreement over one sequence, without its last row."""
    at = np.arange(len(seq) - 1), seq[1:]
    kl = (np.exp(p) * (p - q)).sum(axis=-1)
    same = p.argmax(axis=-1) == q.argmax(axis=-1)
    return float(-p[at].mean()), float(-q[at].mean()), float(kl.mean()), float(same.mean())


def logp(engine: Engine, seq: NDArray[np.int32]) -> NDArray[np.float64]:
    """(len(seq) - 1, n_vocab) log-probabilities of the token after each but the last. Nothing is stored."""
    n = len(seq)
    chain, zeros = np.arange(n, dtype=np.int32), np.zeros(n, np.int32)
    want = np.ones(n, np.int32)
    want[-1] = 0
    rows = Rows(seq.astype(np.int32), chain, np.full(n, n, np.int32), zeros, chain - np.int32(1), want)
    x = np.asarray(engine.runner.run(rows, [engine.store.new()], False).logits, np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x
