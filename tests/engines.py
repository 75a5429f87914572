"""Engines over tiny random models, for tests of the core."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pronghorn.compose import Composition, compose
from pronghorn.engine import Engine
from pronghorn.llm import make_engine
from pronghorn.model.checkpoint import Checkpoint, Tensors
from pronghorn.model.tokenizer import Tokenizer
from pronghorn.seq import Request, Seq
from tests.tiny import VOCAB, tape_model

EOS = 0


class _Bytes:
    def encode(self, text: str, special: bool) -> list[int]:
        return [b for b in text.encode() if b < VOCAB]


@cache
def byte_tokenizer() -> Tokenizer:
    """Token i is byte i; 0 ends a text."""
    pieces = [b"", *(bytes([i]) for i in range(1, VOCAB))]
    return Tokenizer(_Bytes(), pieces, {0: "<end>"}, -1, (EOS,), "", (), (), False)


@cache
def _model(seed: int, changes: tuple[tuple[str, Any], ...]) -> Any:
    return tape_model(seed, **dict(changes))


def engine(
    use: Sequence[Any] = ("match",),
    backend: str = "ref64",
    seed: int = 0,
    clip: bool = True,
    threads: int = 1,
    kv_bytes: int = 1 << 28,
    methods: Composition | None = None,
    **changes: Any,
) -> Engine:
    """An engine over a random llama; `changes` are config fields."""
    tape, tensors = _model(seed, tuple(sorted(changes.items())))
    checkpoint = Checkpoint(Path("random"), "hf", {}, Tensors.of(tensors), (EOS,), -1)
    chosen = methods or compose(use)
    return make_engine(checkpoint, tape, chosen, byte_tokenizer(), backend, threads, kv_bytes, clip)


def prompt(n: int, seed: int = 0, repeat: bool = True) -> tuple[int, ...]:
    """n random printable token ids; with `repeat` the text repeats itself, so that drafters find
    something."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(32, 127, n)
    if repeat and n >= 8:
        unit = ids[: max(4, n // 5)]
        ids = np.resize(unit, n)
        ids[-3:] = unit[:3]
    return tuple(int(i) for i in ids)


def generate(e: Engine, ids: Sequence[int], n: int = 48, **options: Any) -> list[int]:
    """New tokens of one request, ends of text ignored unless asked otherwise."""
    options.setdefault("ignore_eos", True)
    ((seq, *_),) = e.run([Request(tuple(ids), max_tokens=n, **options)])
    return list(seq.new)


def run_all(e: Engine, requests: Sequence[Request]) -> list[Seq]:
    return [group[0] for group in e.run(requests)]
