"""GGUF files that Pronghorn did not write: other layouts, other settings, and what is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from pronghorn.errors import CheckpointError, PronghornError, UnsupportedError
from pronghorn.model.checkpoint import load_checkpoint

SETTINGS = {
    "block_count": 1,
    "embedding_length": 32,
    "feed_forward_length": 64,
    "context_length": 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}


def write(path: Path, arch: str, tensors: dict[str, Any], **settings: Any) -> Path:
    writer = GGUFWriter(path, arch)
    for key, value in {**SETTINGS, **settings}.items():
        key = key if key.startswith(("split", "tokenizer", "pronghorn")) else f"{arch}.{key}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, tensor in tensors.items():
        raw = None
        if isinstance(tensor, tuple):
            tensor, raw = tensor
        writer.add_tensor(name, tensor, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def some(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


EMBED = {"token_embd.weight": some(50, 32)}


def test_settings_become_a_config(tmp_path):
    path = write(
        tmp_path / "m.gguf", "llama", {**EMBED, "blk.0.attn_q.weight": some(32, 32)},
        **{"rope.freq_base": 500000.0, "tokenizer.ggml.eos_token_id": 7,
           "tokenizer.ggml.eot_token_id": 9, "tokenizer.ggml.bos_token_id": 3,
           "attention.head_count_kv": [2, 2], "rope.scaling.type": "linear",
           "rope.scaling.factor": 4.0},
    )  # fmt: skip
    checkpoint = load_checkpoint(path)
    config = checkpoint.config
    assert (config["model_type"], config["vocab_size"], config["head_dim"]) == ("llama", 50, 8)
    assert config["tie_word_embeddings"] is True and config["num_key_value_heads"] == 2
    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert (checkpoint.eos, checkpoint.bos) == ((7, 9), 3)
    assert set(checkpoint.gguf_metadata) == {
        "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.bos_token_id",
    }  # fmt: skip


def test_rows_of_q_and_k_are_put_back(tmp_path):
    """llama.cpp's converter reorders them; the formula here is its own, written out."""
    q = some(32, 32)
    stored = q.reshape(4, 2, 4, 32).swapaxes(1, 2).reshape(32, 32)
    path = write(tmp_path / "m.gguf", "llama", {**EMBED, "blk.0.attn_q.weight": stored})
    tensors = load_checkpoint(path).tensors
    np.testing.assert_array_equal(tensors["model.layers.0.self_attn.q_proj.weight"], q)


def test_experts_one_tensor_each_as_older_files_have_them(tmp_path):
    tensors = {f"blk.0.ffn_{p}.{e}.weight": some(64, 32) for p in ("gate", "up") for e in (0, 1)}
    path = write(tmp_path / "m.gguf", "llama", {**EMBED, **tensors}, expert_count=2, expert_used_count=1)
    checkpoint = load_checkpoint(path)
    assert checkpoint.config["model_type"] == "mixtral"
    np.testing.assert_array_equal(
        checkpoint.tensors["model.layers.0.block_sparse_moe.experts.1.w3.weight"],
        tensors["blk.0.ffn_up.1.weight"],
    )


def test_partial_rope(tmp_path):
    path = write(tmp_path / "m.gguf", "phi3", EMBED, **{"rope.dimension_count": 6})
    config = load_checkpoint(path).config
    assert (config["head_dim"], config["partial_rotary_factor"]) == (8, 0.75)


def test_gemma_knows_what_its_file_leaves_out(tmp_path):
    path = write(tmp_path / "m.gguf", "gemma3", {**EMBED, "output_norm.weight": np.ones(32, "f4")})
    checkpoint = load_checkpoint(path)
    assert checkpoint.config["rope_theta"] == 1000000.0
    assert checkpoint.config["rope_local_base_freq"] == 10000.0
    assert checkpoint.config["query_pre_attn_scalar"] == 8
    np.testing.assert_array_equal(checkpoint.tensors["model.norm.weight"], np.zeros(32))


QUANT = (np.zeros((4, 66), np.uint8), GGMLQuantizationType.IQ2_XXS)


@pytest.mark.parametrize(
    ("arch", "tensors", "settings", "kind", "match"),
    [
        ("mamba", EMBED, {}, UnsupportedError, "'mamba' is not supported.*llama, qwen2"),
        ("llama", {**EMBED, "blk.0.attn_v.weight": QUANT}, {}, UnsupportedError, "IQ2_XXS.*Q4_K"),
        ("llama", {**EMBED, "blk.0.ssm_a": some(4)}, {}, UnsupportedError, "ssm_a.*unknown"),
        ("llama", EMBED, {"split.count": 3}, UnsupportedError, "llama-gguf-split --merge"),
        ("llama", EMBED, {"rope.scaling.type": "odd"}, UnsupportedError, "rope scaling 'odd'"),
        ("llama", EMBED, {"attention.head_count": None}, CheckpointError, "head_count must be"),
        ("llama", EMBED, {"attention.head_count": "4"}, CheckpointError, "head_count must be"),
        ("llama", EMBED, {"attention.head_count_kv": [1, 2]}, CheckpointError, "count_kv must"),
        ("llama", EMBED, {"block_count": 999}, CheckpointError, "num_hidden_layers 999"),
        ("llama", {"output_norm.weight": some(32)}, {}, CheckpointError, "no token_embd.weight"),
        ("llama", {**EMBED, "blk.0.attn_k.weight": some(9, 32)}, {}, CheckpointError,
         "heads do not fit"),
        ("llama", EMBED, {"pronghorn.config": "{"}, CheckpointError, "not valid JSON"),
        ("llama", EMBED, {"pronghorn.config": json.dumps({"model_type": "gpt2"})}, CheckpointError,
         "does not describe"),
        ("qwen3moe", {**EMBED, "blk.0.ffn_up_exps.weight": some(3, 8, 32)},
         {"expert_count": 2, "expert_used_count": 1, "expert_feed_forward_length": 8},
         CheckpointError, r"num_experts 2 but blk.0.ffn_up_exps.weight is \(3, 8, 32\)"),
        ("llama", {**EMBED, "rope_freqs.weight": some(2, 2)}, {}, CheckpointError, "rope_freqs"),
    ],
)  # fmt: skip
def test_refused(arch, tensors, settings, kind, match, tmp_path):
    path = write(tmp_path / "m.gguf", arch, tensors, **settings)
    with pytest.raises(PronghornError, match=match) as caught:
        load_checkpoint(path)
    assert type(caught.value) is kind


def test_a_million_experts_of_one_weight_are_refused_before_they_are_listed(tmp_path):
    path = write(
        tmp_path / "m.gguf", "qwen3moe", {**EMBED, "blk.0.ffn_up_exps.weight": some(10**6, 1, 1)},
        expert_count=10**6, expert_used_count=1, expert_feed_forward_length=8,
    )  # fmt: skip
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="splits into 1000000 tensors"):
        load_checkpoint(path)
    assert time.perf_counter() - start < 1


def test_truncated_anywhere(tmp_path):
    path = write(tmp_path / "m.gguf", "llama", EMBED)
    raw = path.read_bytes()
    needed = len(raw) - len(raw) % 32
    for keep in range(0, needed - 32, 37):
        path.write_bytes(raw[:keep])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_folder_of_one_gguf(tmp_path):
    write(tmp_path / "m.gguf", "llama", EMBED)
    assert load_checkpoint(tmp_path).kind == "gguf"
    write(tmp_path / "n.gguf", "llama", EMBED)
    with pytest.raises(CheckpointError, match="2 GGUF files.*name one"):
        load_checkpoint(tmp_path)
