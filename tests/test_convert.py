"""Conversion: the same tensors, config and logits there and back; nothing left on failure."""

from __future__ import annotations

import errno
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants

from pronghorn.errors import CheckpointError, UnsupportedError
from pronghorn.model import convert as module
from pronghorn.model import gguf_map
from pronghorn.model.checkpoint import load_checkpoint
from pronghorn.model.convert import convert
from pronghorn.model.quantized.stored import Turned
from pronghorn.ops.codes import Codes

WIDE = {"hidden_size": 64, "intermediate_size": 96}  # rows divide into blocks of 32


def same_tensors(one, other, exact: bool = True) -> None:
    assert set(one.tensors) == set(other.tensors)
    for name in one.tensors:
        a = one.tensors.dense(name).astype(np.float32)
        b = other.tensors.dense(name).astype(np.float32)
        assert one.tensors.info(name).shape == other.tensors.info(name).shape == b.shape
        if exact or "norm" not in name:
            np.testing.assert_array_equal(a, b, err_msg=name)
        else:
            np.testing.assert_allclose(a, b, rtol=0, atol=2**-23, err_msg=name)


SAME_CONFIG = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rope_theta", "rope_scaling",
    "rope_local_base_freq", "rms_norm_eps", "sliding_window", "layer_types", "tie_word_embeddings",
    "num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
    "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
    "n_embd", "n_layer", "n_head", "n_positions", "layer_norm_epsilon", "no_rope_layers",
)  # fmt: skip


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("architecture", checkpoints.ARCHITECTURES)
def test_gguf_and_back(architecture, own, tmp_path, monkeypatch):
    """With Pronghorn's own copy of the config in the file, and with GGUF's standard keys alone."""
    checkpoints.write(architecture, tmp_path / "hf")
    before = load_checkpoint(tmp_path / "hf")
    if not own:
        monkeypatch.setattr(gguf_map, "OWN_CONFIG", "pronghorn.unread")
    convert(tmp_path / "hf", tmp_path / "m.gguf", "f32")
    if not own:
        monkeypatch.setattr(gguf_map, "OWN_CONFIG", "pronghorn.config")
    after = load_checkpoint(tmp_path / "m.gguf")
    same_tensors(before, after, exact=not architecture.startswith("gemma"))
    assert (after.kind, after.eos, after.bos) == ("gguf", before.eos, before.bos)
    for key in SAME_CONFIG:
        if not own and architecture in ("mistral", "ministral") and key == "layer_types":
            continue
        a, b = before.config.get(key), after.config.get(key)
        # GGUF's keys hold float32.
        assert a == pytest.approx(b, rel=1e-7) if isinstance(a, float) else a == b, key
    expect = {"ministral": "mistral"}.get(architecture, architecture)
    assert after.config["model_type"] == (architecture if own else expect)


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "qwen3_moe"]
)
def test_transformers_reads_our_gguf_alike(architecture, tmp_path):
    """An independent reader undoes the same transformations: logits equal the source's."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = checkpoints.build(architecture)
    model.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "m.gguf", "f32")
    other = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="m.gguf",
        config=AutoConfig.from_pretrained(tmp_path / "hf"),
        dtype=torch.float32,
        attn_implementation="eager",
    )
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        a, b = model(ids).logits, other.eval()(ids).logits
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", checkpoints.ARCHITECTURES)
def test_folder_and_back_in_transformers(architecture, tmp_path):
    """hf -> gguf -> hf: transformers computes the same logits from the result."""
    from transformers import AutoModelForCausalLM

    model = checkpoints.build(architecture)
    model.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "m.gguf", "f32")
    convert(tmp_path / "m.gguf", tmp_path / "back", "f32")
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path / "back", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, again(ids).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_float_types_keep_every_bit(dtype, tmp_path):
    torch_name = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype]
    checkpoints.write("llama", tmp_path / "hf", dtype=torch_name)
    before = load_checkpoint(tmp_path / "hf")
    for target in ("m.gguf", "folder"):
        convert(tmp_path / "hf", tmp_path / target, dtype)
        after = load_checkpoint(tmp_path / target)
        same_tensors(before, after)
        assert after.tensors.info("model.embed_tokens.weight").dtype == dtype.upper()
        assert after.tensors["model.embed_tokens.weight"].dtype == (
            before.tensors["model.embed_tokens.weight"].dtype
        )


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gpt2"])
def test_quantized_equals_the_gguf_package(architecture, dtype, tmp_path):
    checkpoints.write(architecture, tmp_path / "hf", **WIDE)
    convert(tmp_path / "hf", tmp_path / "m.gguf", dtype)
    before, after = load_checkpoint(tmp_path / "hf"), load_checkpoint(tmp_path / "m.gguf")
    kind = GGMLQuantizationType[dtype.upper()]
    seen = 0
    for name in before.tensors:
        source = before.tensors[name]
        transposed = architecture == "gpt2" and source.ndim == 2 and ".h." in name
        source = source.T if transposed else source
        if source.ndim == 1:
            continue
        seen += 1
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # Reordering rows commutes with quantizing them.
            pass
        want = quants.dequantize(quants.quantize(np.ascontiguousarray(source), kind), kind)
        held, got = after.tensors[name], after.tensors.dense(name)
        positions = name.endswith("wpe.weight")  # no matrix of a product
        assert isinstance(held, np.ndarray if positions else Turned if transposed else Codes), name
        assert held.shape == got.shape == before.tensors[name].shape
        assert after.tensors.info(name).dtype == dtype.upper()
        np.testing.assert_array_equal(got.T if transposed else got, want, err_msg=name)
    assert seen > 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_that_make_no_blocks_keep_their_type(dtype, tmp_path):
    checkpoints.write("llama", tmp_path / "hf", dtype=dtype)
    made = convert(tmp_path / "hf", tmp_path / "m.gguf", "q8_0")
    assert any("no multiple of 32" in note for note in made.notes)
    before, after = load_checkpoint(tmp_path / "hf"), load_checkpoint(tmp_path / "m.gguf")
    same_tensors(before, after)
    name = "model.layers.0.mlp.down_proj.weight"
    assert after.tensors.info(name).dtype == before.tensors.info(name).dtype


@pytest.mark.parametrize(
    "kind",
    [
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q4_0",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "IQ4_NL",
        "IQ4_XS",
        "MXFP4",
        "BF16",
        "F16",
    ],
)
def test_every_readable_type_equals_the_gguf_package(kind, tmp_path):
    """Random blocks in a file written by gguf's own writer."""
    from gguf import GGML_QUANT_SIZES, GGUFWriter

    from pronghorn.model import gguf

    rng = np.random.default_rng(0)
    number = GGMLQuantizationType[kind]
    block, nbytes = GGML_QUANT_SIZES[number]
    raw = rng.integers(0, 120, (5, 512 // block * nbytes), dtype=np.uint8)
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("t", raw, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    contents = gguf.parse(tmp_path / "m.gguf")
    got = gguf.read_tensor(contents.data, contents.tensors[0])
    assert got.shape == (5, 512)
    np.testing.assert_array_equal(got.astype(np.float32), quants.dequantize(raw, number))


def test_bundled_model_reads_alike_from_all_three(shared, tmp_path):
    folder = shared("models/pronghorn-tiny")
    seen: list[tuple[int, int]] = []
    convert(folder, tmp_path / "m.gguf", "bf16", lambda done, total: seen.append((done, total)))
    made = convert(folder, tmp_path / "m.bin", "f32")
    assert any("rope_theta" in note for note in made.notes)
    assert any("SentencePiece" in note for note in made.notes)
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    one, two, three = (load_checkpoint(p) for p in (folder, tmp_path / "m.gguf", tmp_path / "m.bin"))
    same_tensors(one, two)
    same_tensors(one, three)
    assert one.eos == two.eos == three.eos == (0, 5)
    assert one.bos == two.bos == three.bos
    for key in ("rope_theta", "rms_norm_eps", "head_dim", "num_key_value_heads", "vocab_size",
                "max_position_embeddings", "tie_word_embeddings"):  # fmt: skip
        assert one.config[key] == two.config[key] == three.config[key], key
    metadata = two.gguf_metadata
    assert json.loads(metadata["tokenizer.huggingface.json"]) == json.loads(
        (folder / "tokenizer.json").read_text()
    )
    assert len(metadata["tokenizer.ggml.tokens"]) == 4096
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.token_type"][5] == 3
    reader = GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.architecture"].contents() == "llama"
    assert len(reader.tensors) == len(one.tensors)


def test_stories_through_gguf_and_back(shared, tmp_path):
    source = shared("models/stories260K/stories260K.bin")
    convert(source, tmp_path / "m.gguf", "f32")
    middle = load_checkpoint(tmp_path / "m.gguf")
    same_tensors(load_checkpoint(source), middle)
    assert middle.gguf_metadata["tokenizer.ggml.model"] == "llama"
    assert middle.gguf_metadata["tokenizer.ggml.tokens"][3] == "<0x00>"
    convert(tmp_path / "m.gguf", tmp_path / "m.bin", "f32")
    a, b = source.read_bytes(), (tmp_path / "m.bin").read_bytes()
    tables = 2 * 512 * 4 * 4
    assert a[:-tables] == b[:-tables]
    np.testing.assert_allclose(
        np.frombuffer(a[-tables:], "<f4"), np.frombuffer(b[-tables:], "<f4"), atol=1e-4
    )
    assert (tmp_path / "tok512.bin").read_bytes() == (source.parent / "tok512.bin").read_bytes()


def test_llama3_frequencies_become_rope_scaling(tmp_path, monkeypatch):
    """Without Pronghorn's own config the factors alone must give transformers' frequencies."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128, "rope_theta": 500000.0}  # fmt: skip
    checkpoints.write("llama", tmp_path / "hf", rope_parameters=rope)
    monkeypatch.setattr(gguf_map, "OWN_CONFIG", "pronghorn.unread")
    convert(tmp_path / "hf", tmp_path / "m.gguf", "f32")
    monkeypatch.setattr(gguf_map, "OWN_CONFIG", "pronghorn.config")
    scaling = load_checkpoint(tmp_path / "m.gguf").config["rope_scaling"]
    assert scaling["rope_type"] == "longrope" and scaling["attention_factor"] == 1.0
    config = AutoConfig.from_pretrained(tmp_path / "hf")
    want, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    base = 500000.0 ** -(np.arange(0, 12, 2) / 12)
    np.testing.assert_allclose(base / np.array(scaling["long_factor"]), want.numpy(), rtol=1e-6)
    assert load_checkpoint(tmp_path / "hf").config["rope_scaling"] == {
        key: value for key, value in rope.items() if key != "rope_theta"
    }


def test_phi3_long_rope_survives(tmp_path):
    rope = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
            "long_factor": [2.0, 2.5, 3.0, 3.5, 4.0, 4.5], "rope_theta": 10000.0}  # fmt: skip
    checkpoints.write("phi3", tmp_path / "hf", rope_parameters=rope, original_max_position_embeddings=64)
    convert(tmp_path / "hf", tmp_path / "m.gguf", "f32")
    before, after = load_checkpoint(tmp_path / "hf"), load_checkpoint(tmp_path / "m.gguf")
    assert before.config["rope_scaling"] == after.config["rope_scaling"]
    assert before.config["rope_scaling"]["original_max_position_embeddings"] == 64


# What cannot be done, and what goes wrong.


@pytest.mark.parametrize(
    ("target", "dtype", "match"),
    [
        ("m.bin", "f32", "cannot express architecture qwen3"),
        ("m.bin", "bf16", "f32 only"),
        ("folder", "q8_0", "only in GGUF"),
        ("m.gguf", "q3_k", "choose one of"),
    ],
)
def test_refusals(target, dtype, match, tmp_path):
    checkpoints.write("qwen3", tmp_path / "hf")
    with pytest.raises(UnsupportedError, match=match):
        convert(tmp_path / "hf", tmp_path / target, dtype)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_weights_too_large_for_f16(tmp_path):
    model = checkpoints.build("llama")
    with torch.no_grad():
        model.lm_head.weight[3, 3] = 1e6
    model.save_pretrained(tmp_path / "hf")
    with pytest.raises(UnsupportedError, match="too large for f16"):
        convert(tmp_path / "hf", tmp_path / "m.gguf", "f16")


def test_existing_folder_is_not_overwritten(tmp_path):
    checkpoints.write("llama", tmp_path / "hf")
    with pytest.raises(CheckpointError, match="already exists"):
        convert(tmp_path / "hf", tmp_path / "hf", "f32")


@pytest.mark.parametrize("target", ["m.gguf", "m.bin", "folder"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_interrupted_conversion_leaves_nothing(target, stop, tmp_path):
    checkpoints.write("llama", tmp_path / "hf", rms_norm_eps=1e-5)
    if target != "folder":
        (tmp_path / target).write_text("the old one")

    def interrupt(done, total):
        if done > total // 2:
            raise stop

    expect = KeyboardInterrupt if stop is KeyboardInterrupt else CheckpointError
    with pytest.raises(expect, match="no room" if expect is CheckpointError else None):
        convert(tmp_path / "hf", tmp_path / target, "f32", interrupt)
    kept = ["hf"] if target == "folder" else ["hf", target]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)
    if target != "folder":
        assert (tmp_path / target).read_text() == "the old one"


@pytest.mark.parametrize("target", ["m.gguf", "m.bin", "folder"])
def test_full_disk_for_real(target, tmp_path):
    """The kernel refuses to grow any file past 40 kB, in a process of its own."""
    checkpoints.write("llama", tmp_path / "hf", rms_norm_eps=1e-5)
    script = (
        "import sys\n"
        "from pronghorn.errors import CheckpointError\n"
        "from pronghorn.model.convert import convert\n"
        "try:\n    convert(sys.argv[1], sys.argv[2], 'f32')\n"
        "except CheckpointError as error:\n    print(error); sys.exit(2)\n"
    )

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    root = Path(module.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "hf"), str(tmp_path / target)],
        preexec_fn=limit, capture_output=True, text=True, timeout=60, cwd=root,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "no room to write" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_missing_expert_is_noticed(tmp_path):
    from safetensors.torch import load_file, save_file

    checkpoints.write("olmoe", tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.experts.2.up_proj.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="experts are missing"):
        convert(tmp_path / "hf", tmp_path / "m.gguf", "f32")


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"model": {"vocab": {"a": "x"}}},
        {"model": {"vocab": [1, 2]}},
        {"model": 5},
        {"added_tokens": [{}]},
        {"model": {"vocab": {"a": 0}, "merges": [[1, 2]]}},
    ],
)
def test_tokenizer_that_is_none(tokenizer, tmp_path):
    checkpoints.write("llama", tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="not a tokenizer.json"):
        convert(tmp_path / "hf", tmp_path / "m.gguf", "f32")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize("target", ["m.gguf", "m.bin"])
@pytest.mark.parametrize("key", ["rms_norm_eps", "intermediate_size", "max_position_embeddings"])
def test_config_without_a_field_that_the_target_needs(target, key, tmp_path):
    checkpoints.write("llama", tmp_path / "hf", rms_norm_eps=1e-5)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    del config[key]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"config has no {key}"):
        convert(tmp_path / "hf", tmp_path / target, "f32")
