"""GGUF files that Pronghorn did not write: other layouts, other settings, and what is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants

from pronghorn.errors import CheckpointError, PronghornError, UnsupportedError
from pronghorn.model.checkpoint import find_nonfinite, load_checkpoint
from pronghorn.model.quantized.stored import Turned
from pronghorn.ops.codes import Codes

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


def quantized(a: np.ndarray, kind: str) -> tuple[np.ndarray, GGMLQuantizationType]:
    """As `write` takes it: the bytes and their type."""
    number = GGMLQuantizationType[kind]
    return quants.quantize(a, number), number


def values(a: np.ndarray, kind: str) -> np.ndarray:
    return quants.dequantize(*quantized(a, kind))


def test_quantized_matrices_stay_small_integers(tmp_path):
    q = some(32, 32)
    stored = q.reshape(4, 2, 4, 32).swapaxes(1, 2).reshape(32, 32)
    path = write(
        tmp_path / "m.gguf", "llama",
        {"token_embd.weight": quantized(some(50, 32), "Q5_1"),
         "blk.0.attn_q.weight": quantized(stored, "Q4_0"),
         "blk.0.attn_norm.weight": quantized(some(32), "Q8_0")},
    )  # fmt: skip
    tensors = load_checkpoint(path).tensors
    embed, q_proj = tensors["model.embed_tokens.weight"], tensors["model.layers.0.self_attn.q_proj.weight"]
    assert isinstance(embed, Codes) and isinstance(q_proj, Codes)
    np.testing.assert_array_equal(embed.dense(), values(some(50, 32), "Q5_1"))
    np.testing.assert_array_equal(q_proj.dense(), values(q, "Q4_0"))
    norm = tensors["model.layers.0.input_layernorm.weight"]
    assert isinstance(norm, np.ndarray), "a vector is no matrix of a product"
    np.testing.assert_array_equal(norm, values(some(32)[None], "Q8_0")[0])
    assert tensors.info("model.embed_tokens.weight").dtype == "Q5_1"


@pytest.mark.parametrize("arch", ["llama", "qwen3moe"])
def test_quantized_experts_stacked_or_not(arch, tmp_path):
    up = some(3, 64, 32)
    if arch == "llama":
        tensors = {f"blk.0.ffn_up.{e}.weight": quantized(up[e], "Q8_0") for e in range(3)}
        name = "model.layers.0.block_sparse_moe.experts.{}.w3.weight"
    else:
        tensors = {"blk.0.ffn_up_exps.weight": quantized(up, "Q8_0")}
        name = "model.layers.0.mlp.experts.{}.up_proj.weight"
    path = write(tmp_path / "m.gguf", arch, {**EMBED, **tensors}, expert_count=3, expert_used_count=1,
                 expert_feed_forward_length=64)  # fmt: skip
    checkpoint = load_checkpoint(path)
    for e in range(3):
        codes = checkpoint.tensors[name.format(e)]
        assert isinstance(codes, Codes) and codes.shape == (64, 32)
        np.testing.assert_array_equal(codes.dense(), values(up[e], "Q8_0"))


def test_quantized_gpt2(tmp_path):
    """Its matrices are named as (n_in, n_out), its positions are no matrix at all."""
    fc = some(128, 32)
    path = write(
        tmp_path / "m.gguf", "gpt2",
        {**EMBED, "blk.0.ffn_up.weight": quantized(fc, "Q4_1"),
         "position_embd.weight": quantized(some(16, 32), "Q8_0")},
        **{"attention.layer_norm_epsilon": 1e-5},
    )  # fmt: skip
    tensors = load_checkpoint(path).tensors
    turned = tensors["transformer.h.0.mlp.c_fc.weight"]
    assert isinstance(turned, Turned) and turned.shape == (32, 128)
    np.testing.assert_array_equal(turned.T.dense(), values(fc, "Q4_1"))
    np.testing.assert_array_equal(tensors.dense("transformer.h.0.mlp.c_fc.weight"), values(fc, "Q4_1").T)
    np.testing.assert_array_equal(tensors["transformer.wpe.weight"], values(some(16, 32), "Q8_0"))


def test_tensors_are_decoded_when_asked_for(tmp_path):
    """A scale that is not a number is found when its tensor is read, not before, and is named."""
    raw, kind = quantized(some(64, 32), "Q8_0")
    raw[5, :2] = np.array([np.nan], "<f2").view(np.uint8)
    path = write(tmp_path / "m.gguf", "llama", {**EMBED, "blk.0.ffn_up.weight": (raw, kind)})
    checkpoint = load_checkpoint(path)
    assert checkpoint.tensors["model.embed_tokens.weight"].shape == (50, 32)
    with pytest.raises(CheckpointError, match=r"'model\.layers\.0\.mlp\.up_proj\.weight' holds NaN"):
        checkpoint.tensors["model.layers.0.mlp.up_proj.weight"]
    assert find_nonfinite(checkpoint) == ("model.layers.0.mlp.up_proj.weight",)


def test_rows_that_make_no_whole_blocks_are_refused(tmp_path):
    path = write(tmp_path / "m.gguf", "llama", {**EMBED, "blk.0.ffn_up.weight": some(8, 48)})
    raw = bytearray(path.read_bytes())
    at = raw.index(b"blk.0.ffn_up.weight") + 19 + 4 + 16  # past its name and dimensions
    raw[at : at + 4] = (8).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"\(8, 48\) does not divide into Q8_0 blocks"):
        load_checkpoint(path)


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
