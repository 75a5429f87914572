"""Hugging Face folders: what transformers wrote is read back; damage is refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoints
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig

from pronghorn.errors import CheckpointError, UnsupportedError
from pronghorn.model import names
from pronghorn.model.arch import build_tape
from pronghorn.model.checkpoint import find_nonfinite, load_checkpoint, validate


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return checkpoints.write("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def stored(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor as the safetensors library reads it."""
    out = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as reader:
            out.update({key: reader.get_tensor(key) for key in reader.keys()})  # noqa: SIM118
    return out


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps(config))


def rewrite_header(path: Path, change) -> None:
    """Apply `change` to the parsed header and write it back over the same data."""
    raw = path.read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + n])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + n :])


@pytest.mark.parametrize("architecture", checkpoints.ARCHITECTURES)
def test_every_architecture_equals_what_transformers_wrote(architecture, tmp_path):
    checkpoints.write(architecture, tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    want = stored(tmp_path)
    assert set(checkpoint.tensors) == set(want)
    for name, tensor in want.items():
        np.testing.assert_array_equal(checkpoint.tensors[name], tensor)
        assert checkpoint.tensors[name].dtype == tensor.dtype
    assert checkpoint.config["model_type"] == architecture
    assert checkpoint.config["rope_scaling"] is None
    assert (checkpoint.eos, checkpoint.bos, checkpoint.kind) == ((2,), 1, "hf")
    assert checkpoint.gguf_metadata == {}


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "olmoe"])
def test_experts_fused_in_one_tensor_are_split(architecture, tmp_path):
    checkpoints.write(architecture, tmp_path)
    want = stored(tmp_path)
    model = checkpoints.build(architecture)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    assert any("gate_up_proj" in name for name in state), "transformers holds experts fused"
    save_file(state, tmp_path / "model.safetensors")
    checkpoint = load_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == set(want)
    for name, tensor in want.items():
        np.testing.assert_array_equal(checkpoint.tensors[name], tensor)
        assert checkpoint.tensors.info(name).shape == tensor.shape
        assert checkpoint.tensors.info(name).nbytes == tensor.nbytes


@pytest.mark.parametrize(
    ("dtype", "numpy"),
    [("float32", np.float32), ("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)],
)
def test_dtypes_and_no_copy(dtype, numpy, tmp_path):
    checkpoints.write("llama", tmp_path, dtype=dtype)
    checkpoint = load_checkpoint(tmp_path)
    name = "model.embed_tokens.weight"
    tensor = checkpoint.tensors[name]
    assert tensor.dtype == numpy
    assert np.shares_memory(tensor, checkpoint.tensors[name]), "both are views of one map"
    assert not tensor.flags.writeable
    np.testing.assert_array_equal(
        tensor.astype(np.float32),
        checkpoints.build("llama")
        .to(getattr(torch, dtype))
        .model.embed_tokens.weight.float()
        .detach()
        .numpy(),
    )


def test_misaligned_data_is_copied_not_misread(copy):
    def shift(header):
        header["__metadata__"] = {"pad": "x"}

    want = stored(copy)
    for pad in range(4):
        rewrite_header(
            copy / "model.safetensors",
            lambda h, pad=pad: h.update({"__metadata__": {"pad": "x" * pad}}),
        )
        checkpoint = load_checkpoint(copy)
        for name, tensor in want.items():
            got = checkpoint.tensors[name]
            assert got.flags.aligned
            np.testing.assert_array_equal(got, tensor)


def test_shards(tmp_path):
    checkpoints.write("llama", tmp_path / "whole")
    checkpoints.write("llama", tmp_path / "shards", shard="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    whole, shards = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "shards")
    assert set(whole.tensors) == set(shards.tensors)
    for name in whole.tensors:
        np.testing.assert_array_equal(whole.tensors[name], shards.tensors[name])
    one = sorted((tmp_path / "shards").glob("*.safetensors"))[0]
    assert set(load_checkpoint(one).tensors) == set(whole.tensors)
    lost = sorted((tmp_path / "shards").glob("*.safetensors"))[1]
    lost.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=lost.name):
        load_checkpoint(tmp_path / "shards")
    shutil.copy(one, lost)
    with pytest.raises(CheckpointError, match="second time"):
        load_checkpoint(tmp_path / "shards")


def test_index_cannot_reach_outside_the_folder(copy):
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="no file beside it"):
        load_checkpoint(copy)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_multimodal_wrappers_are_removed(prefix, tmp_path):
    checkpoints.write("gemma3_text", tmp_path)
    want = stored(tmp_path)
    tensors = {name.replace("model.", prefix, 1): torch.from_numpy(t) for name, t in want.items()}
    tensors["vision_tower.vision_model.embeddings.patch.weight"] = torch.zeros(3)
    save_file(tensors, tmp_path / "model.safetensors")
    text = json.loads((tmp_path / "config.json").read_text())
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"x": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = load_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == set(want)
    assert checkpoint.config["model_type"] == "gemma3_text"
    assert checkpoint.config["hidden_size"] == 48
    assert checkpoint.config["rope_local_base_freq"] == 10000.0
    assert checkpoint.config["rope_theta"] == 1000000.0


def test_bare_gpt2_names_gain_their_prefix(tmp_path):
    checkpoints.write("gpt2", tmp_path)
    want = stored(tmp_path)
    tensors = {n.removeprefix("transformer."): torch.from_numpy(t) for n, t in want.items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    save_file(tensors, tmp_path / "model.safetensors")
    assert set(load_checkpoint(tmp_path).tensors) == set(want)


@pytest.mark.parametrize(
    ("written", "theta", "scaling"),
    [
        ({"rope_theta": 500.0}, 500.0, None),
        ({"rope_scaling": None}, 10000.0, None),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            10000.0,
            {"rope_type": "linear", "factor": 2.0},
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0}},
            5.0,
            {"rope_type": "linear", "factor": 2.0},
        ),
        (
            {"rope_theta": 7.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            7.0,
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        ),
        (
            {
                "rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [2.0]},
                "original_max_position_embeddings": 64,
            },
            10000.0,
            {
                "rope_type": "longrope",
                "short_factor": [1.0],
                "long_factor": [2.0],
                "original_max_position_embeddings": 64,
            },
        ),
    ],
)
def test_rope_settings_of_both_generations(written, theta, scaling, copy):
    path = copy / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    path.write_text(json.dumps({**config, **written}))
    checkpoint = load_checkpoint(copy)
    assert checkpoint.config["rope_theta"] == theta
    assert checkpoint.config["rope_scaling"] == scaling
    assert "rope_parameters" not in checkpoint.config


@pytest.mark.parametrize("architecture", checkpoints.ARCHITECTURES)
def test_fields_left_to_the_config_class_are_filled_alike(architecture, tmp_path):
    """Strip what transformers can derive; the result must equal what its config class derives."""
    checkpoints.write(architecture, tmp_path)
    full = load_checkpoint(tmp_path).config
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("layer_types", "no_rope_layers", "rope_parameters", "tie_word_embeddings"):
        config.pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = load_checkpoint(tmp_path).config
    for key in (
        "layer_types",
        "no_rope_layers",
        "rope_theta",
        "rope_local_base_freq",
        "tie_word_embeddings",
        "head_dim",
    ):
        assert again.get(key) == full.get(key), key


def test_eos_from_generation_config_first(copy):
    (copy / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert load_checkpoint(copy).eos == (7, 9)
    (copy / "generation_config.json").unlink()
    assert load_checkpoint(copy).eos == (2,)
    edit_config(copy, eos_token_id=None, bos_token_id=None)
    assert (load_checkpoint(copy).eos, load_checkpoint(copy).bos) == ((), -1)


def test_bundled_shape(shared):
    checkpoint = load_checkpoint(shared("models/pronghorn-tiny"))
    assert checkpoint.config["tie_word_embeddings"] is True
    assert checkpoint.config["rope_theta"] == 50000.0
    assert checkpoint.eos == (0, 5)
    info = {i.name: i for i in checkpoint.tensor_info()}
    assert info["model.embed_tokens.weight"].shape == (4096, 192)
    assert info["model.embed_tokens.weight"].dtype == "BF16"
    assert sum(i.nbytes for i in info.values()) == sum(
        checkpoint.tensors[n].nbytes for n in checkpoint.tensors
    )
    assert find_nonfinite(checkpoint) == ()


def test_validate_names_the_fields_behind_a_mismatch(copy):
    checkpoint = load_checkpoint(copy)
    right = {name: checkpoint.tensors.info(name).shape for name in checkpoint.tensors}
    validate(checkpoint, right)
    edit_config(copy, hidden_size=192, num_attention_heads=16)
    with pytest.raises(
        CheckpointError,
        match=r"config says hidden_size 192 but model.embed_tokens.weight is \(160, 48\)",
    ):
        validate(load_checkpoint(copy), {**right, "model.embed_tokens.weight": (160, 192)})
    with pytest.raises(CheckpointError, match=r"model.extra is missing, expected \(3, 4\)"):
        validate(checkpoint, {**right, "model.extra": (3, 4)})


def test_missing_head_is_fine_only_when_tied(tmp_path):
    tied = load_checkpoint(checkpoints.write("llama", tmp_path / "t", tie_word_embeddings=True))
    assert "lm_head.weight" not in tied.tensors
    right = {**{name: tied.tensors.info(name).shape for name in tied.tensors}, "lm_head.weight": (160, 48)}
    validate(tied, right)
    edit_config(tmp_path / "t", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match="lm_head.weight is missing"):
        validate(load_checkpoint(tmp_path / "t"), right)


def add_tensors(folder: Path, **added: np.ndarray) -> None:
    tensors = {n: torch.from_numpy(t) for n, t in {**stored(folder), **added}.items()}
    save_file(tensors, folder / "model.safetensors")


UNUSED = [
    ("llama", "model.layers.1.self_attn.q_proj.bias", (48,)),
    ("llama", "model.layers.0.mlp.down_proj.bias", (48,)),
    ("llama", "model.layers.2.input_layernorm.weight", (48,)),
    ("llama", "lm_head.bias", (160,)),
    ("qwen2", "model.layers.0.self_attn.o_proj.bias", (48,)),
    ("gpt2", "transformer.h.0.crossattention.c_attn.weight", (48, 96)),
]


@pytest.mark.parametrize(("architecture", "name", "shape"), UNUSED, ids=[u[1] for u in UNUSED])
def test_a_tensor_that_the_config_does_not_call_for_is_refused(architecture, name, shape, tmp_path):
    checkpoints.write(architecture, tmp_path)
    loaded = load_checkpoint(tmp_path)
    expected = build_tape(loaded.config).expected()
    validate(loaded, expected)
    add_tensors(tmp_path, **{name: np.zeros(shape, np.float32)})
    with pytest.raises(CheckpointError, match=f"{name} is stored, but the config does not call for it"):
        validate(load_checkpoint(tmp_path), expected)


HARMLESS = [
    ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", False),
    ("llama", "model.rotary_emb.inv_freq", False),
    ("gpt2", "transformer.h.0.attn.bias", True),
    ("gpt2", "transformer.h.1.attn.masked_bias", True),
    ("llama", "lm_head.weight", True),
    ("llama", "vision_tower.blocks.0.weight", False),
]


@pytest.mark.parametrize(("architecture", "name", "tied"), HARMLESS, ids=[h[1] for h in HARMLESS])
def test_harmless_leftovers_are_ignored(architecture, name, tied, tmp_path):
    checkpoints.write(architecture, tmp_path, tie_word_embeddings=tied)
    add_tensors(tmp_path, **{name: np.zeros((3, 4), np.float32)})
    loaded = load_checkpoint(tmp_path)
    validate(loaded, build_tape(loaded.config).expected())


def test_weights_of_whole_numbers_are_refused(tmp_path):
    checkpoints.write("llama", tmp_path)
    tensors = {n: torch.from_numpy(t) for n, t in stored(tmp_path).items()}
    tensors["lm_head.weight"] = torch.zeros(160, 48, dtype=torch.int32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="whole numbers"):
        validate(load_checkpoint(tmp_path), {name: tuple(t.shape) for name, t in tensors.items()})


def test_gpt2_has_the_common_field_names_too(tmp_path):
    config = load_checkpoint(checkpoints.write("gpt2", tmp_path, intermediate_size=None)).config
    assert (config["hidden_size"], config["num_hidden_layers"]) == (48, 2)
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (
        4,
        4,
        12,
    )
    assert (config["n_inner"], config["intermediate_size"]) == (192, 192)
    assert config["max_position_embeddings"] == 512


def test_opening_a_checkpoint_imports_nothing_heavy():
    code = (
        "import sys, pronghorn.model.checkpoint, pronghorn.model.gguf, pronghorn.model.hf\n"
        "heavy = "
        "{'torch', 'gguf', 'huggingface_hub', 'transformers', 'tokenizers', 'safetensors'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    root = Path(names.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_weights_are_found(value, tmp_path):
    checkpoints.write("gpt2", tmp_path)
    tensors = {n: torch.from_numpy(t) for n, t in stored(tmp_path).items()}
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] = value
    save_file(tensors, tmp_path / "model.safetensors")
    seen: list[tuple[int, int]] = []
    checkpoint = load_checkpoint(tmp_path)
    found = find_nonfinite(checkpoint, lambda done, total: seen.append((done, total)))
    assert found == ("transformer.h.1.mlp.c_fc.weight",)
    assert seen[-1][0] == seen[-1][1] > 0


# Damage and lies.


def refuse(path: Path, match: str, kind: type[Exception] = CheckpointError) -> None:
    with pytest.raises(kind, match=match):
        load_checkpoint(path)


def test_missing_things(tmp_path, copy):
    refuse(tmp_path / "nothing here", "does not exist")
    refuse(tmp_path / ("x" * 5000), "not a usable path")
    refuse(Path("a\0b"), "not a usable path")
    (copy / "model.safetensors").unlink()
    refuse(copy, "no .safetensors file")
    (copy / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    refuse(copy, "pickle.*convert it to safetensors")
    refuse(copy / "pytorch_model.bin", "pickle.*convert it to safetensors")
    (copy / "config.json").unlink()
    refuse(copy, "config.json is missing")
    (tmp_path / "notes.txt").write_text("x")
    refuse(tmp_path / "notes.txt", "not a checkpoint that Pronghorn reads")


def test_two_files_and_no_index(copy):
    (copy / "model.safetensors").rename(copy / "a.safetensors")
    shutil.copy(copy / "a.safetensors", copy / "b.safetensors")
    refuse(copy, "say which belong together")
    assert len(load_checkpoint(copy / "a.safetensors").tensors) == 21


@pytest.mark.parametrize("keep", [0, 3, 8, 200, -1])
def test_truncated(keep, copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refuse(copy, "empty|too short|truncated")


def test_pipe_is_not_read(copy):
    path = copy / "model.safetensors"
    path.unlink()
    os.mkfifo(path)
    refuse(copy, "not a regular file")
    config = copy / "config.json"
    config.unlink()
    os.mkfifo(config)
    refuse(copy, "not a regular file")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dtype": "F99"}, "does not read"),
        ({"dtype": 3}, "no dtype"),
        ({"shape": [160, 49]}, "needs"),
        ({"shape": [2**62, 2**62]}, "needs"),
        ({"shape": [-1, 48]}, "shape"),
        ({"shape": [True, 48]}, "shape"),
        ({"shape": 5}, "shape"),
        ({"shape": [1] * 50}, "shape"),
        ({"data_offsets": [0, 2**61]}, "truncated"),
        ({"data_offsets": [8, 0]}, "truncated|offsets"),
        ({"data_offsets": [0]}, "offsets"),
        ({"data_offsets": [0.0, 30720.0]}, "offsets"),
        ({"data_offsets": [4, 30724]}, "overlaps"),
    ],
)
def test_lying_headers(change, match, copy):
    rewrite_header(copy / "model.safetensors", lambda h: h["model.embed_tokens.weight"].update(change))
    refuse(copy, match, (CheckpointError, UnsupportedError))


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"nonsense",
        b"[" * 100_000,
        b'{"a":1}',
        b'{"a":{},"a":{}}',
        b"\xff\xfe",
        b'{"a":' + b"9" * 9000,
    ],
)
def test_headers_that_are_no_header(header, copy):
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    refuse(copy, "JSON|twice|description")


def test_huge_header_length_allocates_nothing(copy):
    path = copy / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:])
    refuse(copy, "truncated")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_hidden_layers": 10**12}, "whole number"),
        ({"num_hidden_layers": 2**31 - 1}, "holds 21 tensors"),
        ({"num_hidden_layers": "two"}, "whole number"),
        ({"hidden_size": -48}, "whole number"),
        ({"hidden_size": 48.0}, "whole number"),
        ({"rms_norm_eps": "small"}, "finite number"),
        ({"rope_parameters": [1]}, "must be an object"),
        ({"rope_parameters": {"rope_type": "linear", "factor": -1}}, "rope setting"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta"),
        ({"rope_parameters": {"rope_type": 5}}, "rope_type"),
        ({"model_type": None}, "model_type"),
        ({"eos_token_id": "x"}, "token ids"),
        ({"eos_token_id": [-1]}, "token ids"),
        ({"layer_types": ["full_attention"]}, "1 entries"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
    ],
)
def test_lying_configs(change, match, copy):
    (copy / "generation_config.json").unlink()
    edit_config(copy, **change)
    refuse(copy, match)


NESTED = [
    (
        "gemma3_text", {"full_attention": {}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}},
        UnsupportedError, "rope_type 'linear' for sliding_attention",
    ),
    (
        "gemma3_text", {"full_attention": {}, "sliding_attention": {"type": "yarn"}},
        UnsupportedError, "rope_type 'yarn' for sliding_attention",
    ),
    (
        "gemma3_text", {"full_attention": {}, "sliding_attention": {"partial_rotary_factor": 0.5}},
        UnsupportedError, "'partial_rotary_factor' .0.5. for sliding_attention",
    ),
    (
        "gemma3_text", {"sliding_attention": {"rope_theta": 1e4}},
        CheckpointError, "must hold settings for full_attention, not None",
    ),
    (
        "gemma3_text", {"full_attention": {}, "sliding_attention": 3},
        CheckpointError, "settings for sliding_attention, not 3",
    ),
    (
        "llama", {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e5}},
        UnsupportedError, "of its own for sliding_attention.*llama",
    ),
]  # fmt: skip


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(("architecture", "rope", "kind", "match"), NESTED)
def test_rope_settings_of_one_kind_of_layer_are_not_dropped(architecture, rope, kind, match, key, tmp_path):
    checkpoints.write(architecture, tmp_path)
    edit_config(tmp_path, **{"rope_parameters": None, key: rope})
    refuse(tmp_path, f"{key}.*{match}", kind)


@pytest.mark.parametrize("architecture", checkpoints.ARCHITECTURES)
def test_head_size_of_a_config_without_one_is_that_of_its_class(architecture, tmp_path):
    checkpoints.write(architecture, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("head_dim", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    reference = AutoConfig.from_pretrained(tmp_path)
    width = reference.hidden_size // reference.num_attention_heads
    want = getattr(reference, "head_dim", None) or width
    assert build_tape(load_checkpoint(tmp_path).config).head_dim == want
    assert build_tape(config).head_dim == want


def test_quantized_by_another_library(copy):
    edit_config(copy, quantization_config={"quant_method": "bitsandbytes"})
    refuse(copy, "'bitsandbytes'; Pronghorn reads gptq, awq.*GGUF", UnsupportedError)


def test_unknown_architecture_names_the_nearest_and_the_known_ones(copy):
    edit_config(copy, model_type="qwen9")
    refuse(copy, "'qwen9' is not supported.*nearest: qwen.*llama, ministral, mistral", UnsupportedError)


def test_hub_names(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    checkpoints.write("llama", tmp_path)
    asked = {}

    def fake(name, **options):
        asked[name] = options
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    assert load_checkpoint("someone/some-model").config["model_type"] == "llama"
    assert "*.safetensors" in asked["someone/some-model"]["allow_patterns"]

    def offline(name, **options):
        raise LocalEntryNotFoundError("no network and nothing in the cache\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    refuse(Path("someone/some-model"), "cannot download someone/some-model.*Check the connection")
