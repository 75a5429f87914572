"""Negative controls: a model that is wrong in one detail fails the parity tests' tolerance by far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import drive
import numpy as np
import pytest
import reference
import tiny

from pronghorn.model.tape import Op, Tape

PROMPT = np.random.default_rng(5).integers(0, tiny.VOCAB, 300).tolist()
TOLERANCE = 1e-4


@cache
def expected(shape: str) -> drive.Trace:
    return reference.greedy(tiny.checkpoint(shape), [PROMPT], 1)[0]


def error_of(shape: str, change: Callable[[Tape], Tape]) -> float:
    """Largest difference of a logit from transformers' after `change`."""
    runner, store = drive.runner_for(drive.load(tiny.checkpoint(shape), change), "numpy32")
    [have] = drive.greedy(runner, store, [PROMPT], 1)
    return float(np.abs(have.logits - expected(shape).logits).max())


def attribute(kind: str, key: str, wrong: Callable[[Any], Any], nth: int = 0) -> Callable[[Tape], Tape]:
    """Change one attribute of the nth op of a kind."""

    def change(tape: Tape) -> Tape:
        at = [i for i, op in enumerate(tape.ops) if op.kind == kind][nth]
        op = tape.ops[at]
        tape.ops[at] = op._replace(attrs={**op.attrs, key: wrong(op.attrs[key])})
        return tape

    return change


def rope(nth: int = 0, **wrong: Any) -> Callable[[Tape], Tape]:
    def change(tape: Tape) -> Tape:
        tape.ropes[nth] = replace(tape.ropes[nth], **wrong)
        return tape

    return change


def without_bias(kind: str) -> Callable[[Tape], Tape]:
    def bare(op: Op) -> Op:
        return op._replace(params=op.params[:1]) if op.kind == kind else op

    def change(tape: Tape) -> Tape:
        tape.ops = [bare(op) for op in tape.ops]
        return tape

    return change


def without_one(tape: Tape) -> Tape:
    tape.ops = [op._replace(params=tuple(replace(p, add=0.0) for p in op.params)) for op in tape.ops]
    return tape


WRONG: dict[str, tuple[str, Callable[[Tape], Tape]]] = {
    "window one too wide": ("mistral-window", attribute("attend", "window", lambda w: w + 1)),
    "window one too narrow": ("qwen2-window", attribute("attend", "window", lambda w: w - 1, 1)),
    "window left out": ("gemma3-pattern", attribute("attend", "window", lambda w: 0)),
    "score cap left out": ("gemma2-gqa", attribute("attend", "softcap", lambda c: 0.0)),
    "logit cap left out": ("gemma2-gqa", attribute("head", "softcap", lambda c: 0.0)),
    "score scale": ("gemma2-nocap", attribute("attend", "scale", lambda s: s * 1.01)),
    "embedding scale left out": ("gemma3-linear", attribute("embed", "scale", lambda s: 1.0)),
    "norm epsilon": ("llama-gqa", attribute("norm", "eps", lambda e: e * 10)),
    "norm weights without their one": ("gemma3-linear", without_one),
    "layer norm as rms": ("gpt2-tied", attribute("norm", "mode", lambda m: "rms")),
    "activation": ("gpt2-tied", attribute("act", "fn", lambda f: "gelu")),
    "experts not renormalised": ("mixtral-gqa", attribute("moe", "renorm", lambda r: False)),
    "experts renormalised": ("olmoe-gqa", attribute("moe", "renorm", lambda r: True)),
    "one expert fewer": ("qwen3-moe-gqa", attribute("moe", "top_k", lambda k: k - 1)),
    "rotary base": ("llama-gqa", rope(theta=10001.0)),
    "rotary gain left out": ("llama-yarn", rope(gain=1.0)),
    "yarn range rounded": ("llama-yarn-mscale", rope(truncate=True)),
    "long factors not used": ("phi3-longrope", rope(original=1 << 20)),
    "dynamic scaling left out": ("llama-dynamic", rope(kind="default")),
    "local base on all layers": ("gemma3-pattern", rope(1, theta=1e4)),
    "biases left out": ("qwen2-gqa", without_bias("linear")),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_detail_is_noticed(what):
    shape, change = WRONG[what]
    assert error_of(shape, drive.same) <= TOLERANCE
    assert error_of(shape, change) > 3 * TOLERANCE
