"""llama2.c files: the real one, both weight layouts, and headers that lie."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from pronghorn.errors import CheckpointError
from pronghorn.model import llama2c
from pronghorn.model.checkpoint import load_checkpoint


def test_stories(shared):
    """Config, and the place of tensors in the file."""
    path = shared("models/stories260K/stories260K.bin")
    checkpoint = load_checkpoint(path)
    config = checkpoint.config
    assert (config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]) == (
        64,
        172,
        5,
    )
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (8, 4)
    assert (config["vocab_size"], config["max_position_embeddings"]) == (512, 512)
    assert config["tie_word_embeddings"] is True
    assert (checkpoint.kind, checkpoint.bos, checkpoint.eos) == ("llama2c", 1, (2,))
    raw = np.frombuffer(path.read_bytes()[28:], "<f4")
    np.testing.assert_array_equal(checkpoint.tensors["model.embed_tokens.weight"].ravel(), raw[: 512 * 64])
    tail = raw[-2 * 512 * 4 :]
    assert tail[0] == 1.0, "the frequency tables end the file: cosine of 0 first"
    at = raw.size - tail.size - 64
    np.testing.assert_array_equal(checkpoint.tensors["model.norm.weight"], raw[at : at + 64])


def test_stories_writes_its_documented_text(shared):
    """The loaded tensors, in transformers, give the story documented beside the file."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = shared("models/stories260K")
    checkpoint = load_checkpoint(folder / "stories260K.bin")
    keys = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
    )
    model = LlamaForCausalLM(LlamaConfig(**{k: checkpoint.config[k] for k in keys})).eval()
    state = {name: torch.from_numpy(np.array(t)) for name, t in checkpoint.tensors.items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    ids = torch.tensor([[1]])
    with torch.no_grad():
        for _ in range(60):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    raw = (folder / "tok512.bin").read_bytes()
    at, pieces = 4, []
    while at < len(raw):
        n = struct.unpack_from("<i", raw, at + 4)[0]
        pieces.append(raw[at + 8 : at + 8 + n])
        at += 8 + n
    text = b"".join(pieces[i] for i in ids[0, 1:]).decode().strip()
    assert text.startswith("Once upon a time, there was a little girl named Lily. She loved to play outside")


def test_row_orders_are_inverse():
    weight = np.arange(24 * 3, dtype=np.float32).reshape(24, 3)
    halves = llama2c.to_halves(weight, 6)
    np.testing.assert_array_equal(halves[:6, 0] / 3, [0, 2, 4, 1, 3, 5])
    np.testing.assert_array_equal(llama2c.to_pairs(halves, 6), weight)


def tiny(vocab: int) -> bytes:
    rng = np.random.default_rng(0)
    blocks = llama2c.layout(8, 12, 2, 2, 1, abs(vocab), 16, vocab > 0)
    size = sum(int(np.prod(shape)) for _, shape in blocks)
    head = struct.pack("<7i", 8, 12, 2, 2, 1, vocab, 16)
    return head + rng.standard_normal(size).astype("<f4").tobytes()


def test_untied_classifier_lies_at_the_end(tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(tiny(-20))
    checkpoint = load_checkpoint(path)
    assert checkpoint.config["tie_word_embeddings"] is False
    last = np.frombuffer(path.read_bytes(), "<f4")[-160:]
    np.testing.assert_array_equal(checkpoint.tensors["lm_head.weight"].ravel(), last)
    path.write_bytes(tiny(20))
    assert "lm_head.weight" not in load_checkpoint(path).tensors


@pytest.mark.parametrize("field", range(7))
@pytest.mark.parametrize("value", [0, -1, 3, 2**31 - 1, -(2**31)])
def test_lying_headers(field, value, tmp_path):
    raw = bytearray(tiny(20))
    raw[4 * field : 4 * field + 4] = struct.pack("<i", value)
    path = tmp_path / "m.bin"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


@pytest.mark.parametrize("change", [lambda r: r[:-1], lambda r: r + b"\0", lambda r: r[:27], lambda r: b""])
def test_size_must_fit_exactly(change, tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(change(tiny(20)))
    with pytest.raises(CheckpointError, match="calls for|too short|empty"):
        load_checkpoint(path)


@pytest.mark.parametrize("raw", [b"\x80", b"\x80\x02", b"PK", b"\x80\x02\0\0"])
def test_a_few_bytes(raw, tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="too short"):
        load_checkpoint(path)


def test_pickles_are_refused_and_a_width_of_640_is_not_taken_for_one(tmp_path):
    import pickle

    path = tmp_path / "m.bin"
    for protocol in (2, 4, 5):
        path.write_bytes(pickle.dumps({"a": [1.5] * 50}, protocol=protocol))
        with pytest.raises(CheckpointError, match="pickle.*convert it to safetensors"):
            load_checkpoint(path)
    fields = (640, 8, 1, 10, 10, 20, 4)
    size = sum(int(np.prod(shape)) for _, shape in llama2c.layout(*fields, True))
    path.write_bytes(struct.pack("<7i", *fields) + bytes(4 * size))
    assert load_checkpoint(path).config["hidden_size"] == 640


def test_rope_base_is_read_from_the_tables(tmp_path):
    """The bundled model's base survives; tables that lie leave llama2.c's own."""
    raw = tiny(20)
    blocks = llama2c.layout(8, 12, 2, 2, 1, 20, 16, True)
    tables = 4 * sum(int(np.prod(s)) for n, s in blocks if n.startswith("rope."))
    path = tmp_path / "m.bin"
    for theta in (10000.0, 50000.0, 500000.0, 1000000.0):
        angles = llama2c.angles(16, 4, theta)
        table = np.stack([np.cos(angles), np.sin(angles)]).astype("<f4").tobytes()
        path.write_bytes(raw[:-tables] + table)
        assert load_checkpoint(path).config["rope_theta"] == theta
    path.write_bytes(raw[:-tables] + bytes(tables))
    assert load_checkpoint(path).config["rope_theta"] == 10000.0


def test_later_versions_are_named(tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(struct.pack("<II", 0x616B3432, 2) + bytes(300))
    with pytest.raises(CheckpointError, match="later version"):
        load_checkpoint(path)
