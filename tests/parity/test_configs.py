"""What a config may say: both generations read alike, the rest is refused by name, nothing crashes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tiny

from pronghorn.errors import CheckpointError, PronghornError, UnsupportedError
from pronghorn.model.arch import architectures, build_tape
from pronghorn.model.checkpoint import load_checkpoint
from pronghorn.model.names import normalise_config
from pronghorn.model.rope import Rope

BASE: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 48, "intermediate_size": 80,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "num_experts": 4, "num_local_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_embd": 48, "n_head": 4, "n_layer": 2,
    "n_positions": 64,
}  # fmt: skip


def tape_of(**changes: Any):
    return build_tape({**BASE, **changes})


def ops_of(tape) -> list[Any]:
    return [(op.kind, op.ins, op.out, op.params, op.attrs, op.layer) for op in tape.ops]


def stored_config(shape: str) -> dict[str, Any]:
    return json.loads((tiny.checkpoint(shape) / "config.json").read_text())


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_a_config_as_stored_and_as_loaded_give_the_same_tape(shape):
    stored = build_tape(stored_config(shape))
    loaded = build_tape(load_checkpoint(tiny.checkpoint(shape)).config)
    assert ops_of(stored) == ops_of(loaded)
    assert (stored.ropes, stored.context) == (loaded.ropes, loaded.context)


def test_every_architecture_is_tested():
    assert {architecture for architecture, _ in tiny.SHAPES.values()} == set(architectures())


LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
OLD_AND_NEW = [
    ({}, {"rope_type": "default"}),
    ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    ({"type": "dynamic", "factor": 2}, {"rope_type": "dynamic", "factor": 2.0}),
    ({"rope_type": "llama3", **LLAMA3}, {"rope_type": "llama3", **LLAMA3}),
    (
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "finetuned": True},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    ),
    (
        {"type": "su", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6},
        {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6},
    ),
]


@pytest.mark.parametrize(("old", "new"), OLD_AND_NEW, ids=[n["rope_type"] for _, n in OLD_AND_NEW])
@pytest.mark.parametrize("normalised", [False, True])
def test_both_generations_of_rotary_settings(old, new, normalised):
    a = {**BASE, "rope_theta": 5e5, "rope_scaling": old or None}
    b = {**BASE, "rope_parameters": {"rope_theta": 5e5, **new}}
    if normalised:
        a, b = normalise_config(a, "a"), normalise_config(b, "b")
    [one], [two] = build_tape(a).ropes, build_tape(b).ropes
    assert one == two
    assert one.kind == new["rope_type"]
    assert one.theta == 5e5


def test_gemma3_reads_both_generations():
    shared = {**BASE, "model_type": "gemma3_text", "head_dim": 12, "num_hidden_layers": 6}
    shared["sliding_window"] = 8
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = {**shared, "rope_theta": 2e6, "rope_local_base_freq": 2e4, "rope_scaling": scaling}
    new = {
        **shared,
        "rope_parameters": {
            "full_attention": {**scaling, "rope_theta": 2e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        },
    }
    want = [Rope(12, 2e4), Rope(12, 2e6, "linear", 8.0)]
    for config in (old, new, normalise_config(old, "old"), normalise_config(new, "new")):
        assert build_tape(config).ropes == want


def test_longrope_gain_and_factor_come_from_the_contexts():
    factors = {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
    tape = tape_of(
        model_type="phi3", original_max_position_embeddings=1024,
        rope_scaling={"type": "longrope", **factors},
    )  # fmt: skip
    [rope] = tape.ropes
    assert (rope.original, rope.factor) == (1024, 4.0)
    assert rope.gain == pytest.approx((1 + 2 / 10) ** 0.5)  # ln 4 / ln 1024 = 2 / 10
    assert rope.inv_freq(1025)[0] == pytest.approx(rope.inv_freq(1024)[0] / 2)


def test_windows_follow_the_config():
    def windows(tape) -> list[int]:
        return [op.attrs["window"] for op in tape.ops if op.kind == "attend"]

    assert windows(tape_of(model_type="mistral")) == [4096, 4096]  # its class's default
    assert windows(tape_of(model_type="mistral", sliding_window=None)) == [0, 0]
    assert windows(tape_of(model_type="mixtral")) == [0, 0]
    assert windows(tape_of(model_type="qwen2", sliding_window=8)) == [0, 0]
    use = {"use_sliding_window": True, "sliding_window": 8}
    assert windows(tape_of(model_type="qwen2", max_window_layers=1, **use)) == [0, 8]
    assert windows(tape_of(model_type="gemma2", sliding_window=8)) == [8, 0]
    kinds = ["full_attention", "sliding_attention"]
    assert windows(tape_of(model_type="ministral", sliding_window=8, layer_types=kinds)) == [0, 8]


def yarn(**changes: Any) -> dict[str, Any]:
    return {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, **changes}}


REFUSED: list[tuple[dict[str, Any], type[PronghornError], str]] = [
    ({"model_type": "lama"}, UnsupportedError, "nearest: llama"),
    ({"model_type": "../../setup"}, UnsupportedError, "Pronghorn runs"),
    ({"model_type": "_blocks"}, UnsupportedError, "Pronghorn runs"),
    ({"model_type": None}, CheckpointError, "model_type"),
    ({"hidden_size": "48"}, CheckpointError, "hidden_size.*'48'"),
    ({"hidden_size": True}, CheckpointError, "hidden_size.*True"),
    ({"hidden_size": 50}, CheckpointError, "hidden_size.*multiple of num_attention_heads 4"),
    ({"num_key_value_heads": 3}, CheckpointError, "num_key_value_heads.*divisor"),
    ({"num_hidden_layers": 10**9}, CheckpointError, "num_hidden_layers.*1000000000"),
    ({"head_dim": 15}, CheckpointError, "head_dim.*even"),
    ({"rms_norm_eps": float("nan")}, CheckpointError, "rms_norm_eps.*nan"),
    ({"rms_norm_eps": -1}, CheckpointError, "rms_norm_eps.*-1"),
    ({"hidden_act": "relu2"}, UnsupportedError, "hidden_act 'relu2'.*known: silu"),
    ({"attention_bias": 1}, CheckpointError, "attention_bias"),
    ({"sliding_window": 16}, UnsupportedError, "sliding_window"),
    ({"partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor"),
    ({"rope_scaling": {"type": "xpos"}}, UnsupportedError, "rope_type 'xpos'.*known: default"),
    ({"rope_scaling": {"type": ["linear"]}}, UnsupportedError, "rope_type"),
    ({"rope_scaling": {"type": "linear"}}, CheckpointError, "factor.*None"),
    ({"rope_scaling": {"type": "linear", "factor": 2, "odd": 1}}, UnsupportedError, "'odd'"),
    ({"rope_scaling": "linear"}, CheckpointError, "rope_scaling.*'linear'"),
    (
        {"rope_parameters": {"sliding_attention": {"rope_theta": 1e4}}},
        CheckpointError, "rope_parameters.*settings for full_attention",
    ),
    ({"rope_theta": 0}, CheckpointError, "rope_theta.*0"),
    (yarn(original_max_position_embeddings=0), CheckpointError, "original_max_position.*0"),
    (yarn(truncate="no"), CheckpointError, "truncate.*'no'"),
    (
        {"rope_scaling": {**LLAMA3, "rope_type": "llama3", "high_freq_factor": 1.0}},
        CheckpointError, "high_freq_factor",
    ),
    (
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 6}},
        CheckpointError, "short_factor.*6 numbers",
    ),
    ({"model_type": "phi3", "partial_rotary_factor": 0.25}, CheckpointError, "partial_rotary.*even"),
    (
        {"model_type": "mistral", "layer_types": ["full_attention", "sliding_attention"]},
        UnsupportedError, "ministral",
    ),
    ({"model_type": "ministral", "layer_types": ["chunked_attention"] * 2}, UnsupportedError, "chunked"),
    ({"model_type": "ministral", "layer_types": ["full_attention"]}, CheckpointError, "layer_types"),
    (
        {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2},
        CheckpointError, "sliding_window",
    ),
    ({"model_type": "gemma2", "use_bidirectional_attention": True}, UnsupportedError, "bidirectional"),
    ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, UnsupportedError, "softcapping"),
    ({"model_type": "smollm3", "no_rope_layers": [1]}, CheckpointError, "no_rope_layers"),
    ({"model_type": "gpt2", "add_cross_attention": True}, UnsupportedError, "add_cross_attention"),
    ({"model_type": "gpt2", "n_head": 5}, CheckpointError, "n_embd.*n_head 5"),
    ({"model_type": "olmoe", "clip_qkv": 8.0}, UnsupportedError, "clip_qkv"),
    ({"model_type": "mixtral", "num_experts": 10**5}, CheckpointError, "num_experts"),
    ({"model_type": "mixtral", "num_experts_per_tok": 5}, CheckpointError, "num_experts_per_tok"),
    ({"model_type": "qwen3_moe", "mlp_only_layers": "1"}, CheckpointError, "mlp_only_layers"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "text"), REFUSED, ids=[str(r[0])[:60] for r in REFUSED])
def test_refused_with_the_key_and_the_value(changes, error, text):
    with pytest.raises(error, match=text):
        tape_of(**changes)


JUNK = [
    None, -1, 0, 1, 7, 10**30, 1.5, -0.5, float("nan"), float("inf"), "x", "x" * 10**5, True, False, [],
    [0], [None] * 3, {}, {"full_attention": 3}, {"rope_type": "yarn"}, {"rope_type": {}},
]  # fmt: skip


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_junk_never_crashes(shape):
    """Any one value replaced by junk: a tape, or an error of ours that stays short."""
    config = stored_config(shape)
    sites = [(config, key) for key in config]
    for rope in (config.get("rope_parameters") or {}, *(config.get("rope_parameters") or {}).values()):
        sites += [(rope, key) for key in rope] if isinstance(rope, dict) else []
    for place, key in sites:
        kept = place[key]
        for junk in JUNK:
            place[key] = junk
            assert len(complaint(config)) < 500
        del place[key]
        complaint(config)
        place[key] = kept


def complaint(config: dict[str, Any]) -> str:
    """The error that a config gives, "" when it gives a tape. Any other exception goes through."""
    try:
        build_tape(config)
    except PronghornError as error:
        return str(error)
    return ""
