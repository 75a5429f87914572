"""The quantizers on matrices and on walks: what each promises, and that it cannot be had by accident."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pronghorn.compose import parse
from pronghorn.errors import CheckpointError, MethodError
from pronghorn.model.quantized.stored import dense
from pronghorn.ops.codes import Codes, Grid
from pronghorn.quantize.awq import fold, scaled, search, sites
from pronghorn.quantize.finequant import choose
from pronghorn.quantize.fit import fit
from pronghorn.quantize.gptq import gptq
from pronghorn.quantize.hqq import hqq
from pronghorn.quantize.job import Job
from pronghorn.quantize.methods import QUANTIZERS
from pronghorn.quantize.seen import UNSEEN, Seen, look
from pronghorn.quantize.walk import Walk
from pronghorn.types import Packed
from tests.tiny import tape_model

INT3, INT4 = Grid(3, 32), Grid(4, 32)
AFFINE = Grid(3, 32, False, offset="value")


def inputs(seed: int, n: int = 3000, n_in: int = 192) -> np.ndarray:
    """Correlated, some inputs much larger than others, as in a model."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((24, n_in)) * np.exp(rng.standard_normal(n_in))
    x = rng.standard_normal((n, 24)) @ mix + 0.3 * rng.standard_normal((n, n_in))
    return x.astype(np.float32)


def matrix(seed: int, n_out: int = 64, n_in: int = 192) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_out, n_in)).astype(np.float32)


def loss(c: Codes, w: np.ndarray, seen: Seen) -> float:
    d = c.dense() - w
    return float(np.einsum("oi,ij,oj->", d, seen.hessian, d))


# ------------------------------------------------------------------------------ gptq


@pytest.mark.parametrize("grid", [INT3, AFFINE, Grid(3, 128), Grid(8, 0, scale="float32")], ids=str)
def test_gptq_beats_rounding_on_what_it_saw_and_on_more(grid: Grid) -> None:
    w, x = matrix(1), inputs(2)
    seen, held_out = look(x[:2000]), look(x[2000:])
    plain, made = fit(w, grid), gptq(w, grid, seen)
    assert loss(made, w, seen) < 0.8 * loss(plain, w, seen)
    assert loss(made, w, held_out) < 0.8 * loss(plain, w, held_out)


def test_gptq_of_independent_inputs_is_rounding() -> None:
    w = matrix(3)
    one = Seen(np.eye(192, dtype=np.float32), np.ones(192, np.float32), 1)
    for grid in (INT3, AFFINE):
        assert (gptq(w, grid, one).dense() == fit(w, grid).dense()).all()
    assert (gptq(w, INT3, UNSEEN).dense() == fit(w, INT3).dense()).all()


def test_gptq_with_a_shuffled_hessian_does_not_beat_rounding() -> None:
    """The gain comes from which inputs go together: the same numbers in other places lose."""
    w, seen = matrix(4), look(inputs(5))
    p = np.random.default_rng(6).permutation(192)
    wrong = replace(seen, hessian=np.ascontiguousarray(seen.hessian[np.ix_(p, p)]))
    assert loss(gptq(w, INT3, wrong), w, seen) > loss(fit(w, INT3), w, seen)


def test_gptq_of_rows_apart_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import pronghorn.quantize.gptq as module

    w, seen = matrix(7), look(inputs(8))
    whole = gptq(w, AFFINE, seen)
    monkeypatch.setattr(module, "ROWS", 24)
    assert gptq(w, AFFINE, seen).dense() == pytest.approx(whole.dense(), abs=1e-6)


def test_gptq_where_the_text_says_little() -> None:
    """Fewer rows than inputs, inputs that are always 0, and one that repeats another."""
    x = inputs(9, n=50)
    x[:, 5] = 0
    x[:, 7] = x[:, 6]
    w, seen = matrix(10), look(x)
    made = gptq(w, INT4, seen)
    assert np.isfinite(made.dense()).all()
    assert loss(made, w, seen) < loss(fit(w, INT4), w, seen)
    with pytest.raises(CheckpointError, match="not numbers"):
        gptq(w, INT4, replace(seen, hessian=np.full_like(seen.hessian, np.nan)))


# ------------------------------------------------------------------------------ hqq, finequant


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_hqq_never_ends_above_its_start(bits: int) -> None:
    grid = Grid(bits, 64, False, offset="value")
    gains = {}
    for df in (2.5, 200):
        w = np.random.default_rng(11).standard_t(df, (64, 256)).astype(np.float32)
        cut = w.reshape(64, -1, 64)
        low, high = cut.min(2, keepdims=True), cut.max(2, keepdims=True)
        a = (high - low) / (2**bits - 1)
        start = np.abs(np.rint((cut - low) / a) * a + low - cut).mean()
        end = np.abs(hqq(w, grid).dense() - w).mean()
        assert end < 1.002 * start
        gains[df] = start / end
    assert gains[2.5] > gains[200], "heavy tails gain more than a normal distribution"


def test_hqq_needs_offsets() -> None:
    with pytest.raises(MethodError, match="symmetric=false"):
        hqq(matrix(0), INT4)


def test_hqq_of_odd_widths_and_constants() -> None:
    grid = Grid(4, 64, False, offset="value")
    w = matrix(1, 5, 100)
    assert np.abs(hqq(w, grid).dense() - w).max() < 0.5
    same = np.full((3, 70), 0.5, np.float32)
    assert hqq(same, grid).dense() == pytest.approx(same)


def test_finequant_gives_scales_where_outliers_are() -> None:
    w = np.random.default_rng(12).standard_normal((256, 4096)).astype(np.float32)
    clean = choose(w, INT4)
    w[:, 700:708] *= 50
    spoiled = choose(w, INT4)
    size = {0: 4096, 128: 128, 64: 64, 32: 32}
    assert size[spoiled.group] < size[clean.group]
    assert choose(w, Grid(4, 64)).group >= 64


def test_error_of_a_normal_matrix() -> None:
    """Groups of 64 rounded to their range leave 0.0911; the search must be better, and even steps cannot be
    much better than 0.08."""
    w = np.random.default_rng(13).standard_normal((64, 4096)).astype(np.float32)
    c = fit(w, Grid(4, 64, False, offset="value"))
    error = float(np.sqrt(((c.dense() - w) ** 2).mean()))
    assert 0.075 < error < 0.0911


# ------------------------------------------------------------------------------ awq


SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-bias": {"attention_bias": True, "mlp_bias": True, "head_dim": 20},
    "qwen3": {"model_type": "qwen3", "head_dim": 20},
    "gemma2": {"model_type": "gemma2", "head_dim": 16, "sliding_window": 32, "query_pre_attn_scalar": 16,
               "hidden_activation": "gelu_pytorch_tanh"},
    "phi3": {"model_type": "phi3"},
    "olmo2": {"model_type": "olmo2"},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
N_SITES = {"llama": 4, "llama-bias": 4, "qwen3": 4, "gemma2": 4, "phi3": 4, "olmo2": 2, "mixtral": 2}


def final(tape: Any, tensors: Any, ids: np.ndarray) -> np.ndarray:
    walk = Walk(tape, tensors, ids)
    walk.run(list(enumerate(tape.ops))[:-1])
    (x,) = walk.regs.values()
    return x


@pytest.mark.parametrize("name", SHAPES)
def test_folding_alone_changes_nothing(name: str) -> None:
    tape, tensors = tape_model(3, **SHAPES[name])
    tensors = {n: np.array(a, np.float32) for n, a in tensors.items()}
    rng = np.random.default_rng(4)
    ids = rng.integers(0, 250, (2, 24)).astype(np.int32)
    want = final(tape, tensors, ids)
    found = sites(tape, [op for op in tape.ops if op.layer == 0])
    assert len(found) == N_SITES[name]
    for site in found:
        width = tape.widths[site.register]
        typical = Seen(np.eye(width, dtype=np.float32), rng.uniform(0.5, 2, width).astype(np.float32), 1)
        s = typical.mean
        if site.repeat[0]:
            n_kv, g, d = site.repeat
            s = np.broadcast_to(s.reshape(n_kv, g, d)[:, :1], (n_kv, g, d)).reshape(-1)
        fold(tensors, site, s)
    assert np.abs(final(tape, tensors, ids) - want).max() < 1e-4 * np.abs(want).max()


def test_awq_is_never_worse_than_rounding_on_what_it_saw() -> None:
    tape, tensors = tape_model(5)
    (site, *_) = sites(tape, [op for op in tape.ops if op.layer == 0])
    seen = look(inputs(6, n_in=48))
    weights = {p.key: p.take(tensors) for p in site.readers}
    grids = dict.fromkeys(weights, INT3)
    s = search(weights, grids, seen, site)
    assert s.shape == (48,)
    assert (s > 0).all()

    def total(s: np.ndarray) -> float:
        out = 0.0
        for w in weights.values():
            d = fit(w * s, INT3, scaled(seen, s).importance).dense() / s - w
            out += float(np.einsum("oi,ij,oj->", d, seen.hessian, d))
        return out

    assert total(s) <= total(np.ones(48, np.float32))


# ------------------------------------------------------------------------------ whole models


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("method", QUANTIZERS)
def test_every_method_takes_every_architecture(name: str, method: str) -> None:
    tape, tensors = tape_model(7, **SHAPES[name])
    ids = np.random.default_rng(8).integers(0, 250, (4, 32)).astype(np.int32)
    by = QUANTIZERS[method]
    spec = "int4:symmetric=false" if method == "hqq" else "int4"
    job = Job(tape, tensors, [parse(spec)[1]], by, ids if by.text else np.zeros((0, 0), np.int32))
    made: dict[str, Any] = {}
    for number in range(len(job.stages)):
        made |= job.run(number).made
    flat = {n: dense(m) if isinstance(m, Packed) else m for n, m in made.items()}
    wanted = {
        p.name for op in tape.ops for p in op.params if len(p.shape) == 2 and "gate.weight" not in p.name
    }
    assert {n for n, m in made.items() if isinstance(m, Packed)} == wanted
    held_out = np.random.default_rng(9).integers(0, 250, (2, 24)).astype(np.int32)
    want, got = final(tape, tensors, held_out), final(tape, {**tensors, **flat}, held_out)
    assert 0 < np.linalg.norm(got - want) < 0.6 * np.linalg.norm(want)
