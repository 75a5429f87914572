"""Random checkpoints in the shapes of real models, for measuring speed where the model is not at hand.

A checkpoint is a Hugging Face folder that every engine loads: config.json, model.safetensors in bfloat16,
and a byte-level BPE tokenizer of the right size. Speed does not depend on what the weights are, as long
as they are ordinary numbers: matrices are normal with the usual deviation of 0.02, norms are ones. Two
things differ from the real models: the context is at least 16,384, so that all cells can be measured, and
the tokenizer's merges are made up.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pronghorn.errors import RequestError

PIECE = 1 << 22  # weights made at a time
N_SPECIAL = 4  # tokens at the end of the vocabulary
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Shape:
    """What config.json says. bias: on q, k and v."""

    model_type: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rope_theta: float
    eps: float
    bias: bool = False
    rope_scaling: tuple[tuple[str, Any], ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        name = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[self.model_type]
        more: dict[str, Any] = {"rope_scaling": dict(self.rope_scaling)} if self.rope_scaling else {}
        if self.model_type == "qwen2":
            more |= {"use_sliding_window": False, "max_window_layers": self.layers}
        return {
            "architectures": [name], "model_type": self.model_type, "hidden_size": self.hidden,
            "intermediate_size": self.inner, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim, "vocab_size": self.vocab, "hidden_act": "silu",
            "max_position_embeddings": max(self.context, 16384), "rms_norm_eps": self.eps,
            "rope_theta": self.rope_theta, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
            "bos_token_id": self.vocab - 2, "eos_token_id": self.vocab - 1, "initializer_range": 0.02,
            "attention_dropout": 0.0, "use_cache": True, **more,
        }  # fmt: skip

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor, in the order of the file."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for i in range(self.layers):
            at = f"model.layers.{i}."
            yield at + "input_layernorm.weight", (self.hidden,)
            for name, n in (("q", q), ("k", kv), ("v", kv)):
                yield f"{at}self_attn.{name}_proj.weight", (n, self.hidden)
                if self.bias:
                    yield f"{at}self_attn.{name}_proj.bias", (n,)
            yield at + "self_attn.o_proj.weight", (self.hidden, q)
            yield at + "post_attention_layernorm.weight", (self.hidden,)
            yield at + "mlp.gate_proj.weight", (self.inner, self.hidden)
            yield at + "mlp.up_proj.weight", (self.inner, self.hidden)
            yield at + "mlp.down_proj.weight", (self.hidden, self.inner)
        yield "model.norm.weight", (self.hidden,)


LLAMA3 = (
    ("rope_type", "llama3"), ("factor", 32.0), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0),
    ("original_max_position_embeddings", 8192),
)  # fmt: skip
SHAPES = {
    "smollm2-135m": Shape("llama", 576, 1536, 30, 9, 3, 64, 49152, 8192, 1e5, 1e-5),
    "qwen2.5-0.5b": Shape("qwen2", 896, 4864, 24, 14, 2, 64, 151936, 32768, 1e6, 1e-6, bias=True),
    "llama-3.2-1b": Shape("llama", 2048, 8192, 16, 32, 8, 64, 128256, 131072, 5e5, 1e-5, rope_scaling=LLAMA3),
}


def find_shape(name: str) -> Shape:
    """Raises `RequestError` for an unknown name."""
    if name not in SHAPES:
        raise RequestError(f"no shape called {name!r}; known: {', '.join(SHAPES)}")
    return SHAPES[name]


def cache() -> Path:
    """Where checkpoints and what peers make of them are kept, unless the user says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pronghorn"


def kept(name: str) -> Path:
    """The folder of a shape's checkpoint in the cache, made unless it is there."""
    return make(find_shape(name), cache() / "shapes" / name, lambda done, total: None)


def make(shape: Shape, folder: Path, tick: Tick) -> Path:
    """The folder with the shape's checkpoint, written unless it is there already. Holds a few MB of
    weights at a time; a write that is cut short leaves nothing. tick(done, total) in bytes."""
    header, size = _header(shape)
    whole = folder / "model.safetensors"
    if whole.exists() and whole.stat().st_size == len(header) + size and _config(folder) == shape.config:
        return folder
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        if shutil.disk_usage(part).free < len(header) + size:
            raise RequestError(f"{folder.parent} has no room for {size >> 20} MiB: name another with --dir")
        with open(part / "model.safetensors", "wb") as file:
            file.write(header)
            for done, piece in _weights(shape):
                file.write(piece)
                tick(done, size)
        _write(part / "tokenizer.json", tokenizer(shape.vocab))
        special = special_tokens(shape.vocab)
        _write(
            part / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special[-2],
                "eos_token": special[-1], "pad_token": special[0], "add_bos_token": False,
                "clean_up_tokenization_spaces": False, "model_max_length": shape.context,
            },
        )  # fmt: skip
        _write(part / "generation_config.json", {"eos_token_id": shape.vocab - 1})
        _write(part / "config.json", shape.config)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _config(folder: Path) -> Any:
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def _header(shape: Shape) -> tuple[bytes, int]:
    """The file's start, and how many bytes of tensors follow."""
    at, said = 0, {"__metadata__": {"format": "pt"}}
    entries: dict[str, Any] = dict(said)
    for name, dims in shape.tensors():
        n = 2 * int(np.prod(dims))
        entries[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, at


def _weights(shape: Shape) -> Iterator[tuple[int, bytes]]:
    """Bytes so far, and the next piece."""
    random = np.random.default_rng(0)
    done = 0
    for name, dims in shape.tensors():
        n = int(np.prod(dims))
        for i in range(0, n, PIECE):
            size = min(PIECE, n - i)
            if "norm" in name:
                x = np.ones(size, np.float32)
            else:
                x = random.standard_normal(size, np.float32) * np.float32(0.02)
            done += 2 * size
            yield done, (x.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def special_tokens(vocab: int) -> list[str]:
    """The last tokens of the vocabulary; the last two begin and end a text."""
    return [f"<|special_{i}|>" for i in range(N_SPECIAL - 2)] + ["<|begin|>", "<|end|>"]


def tokenizer(vocab: int) -> dict[str, Any]:
    """A byte-level BPE of `vocab` tokens: the bytes, then every pair of them, then triples, for as many
    as there is room, each with its merge, so that the file is as long as a real one."""
    letters = _letters()
    tokens, merges = list(letters), []
    pairs: list[str] = []
    for k in range(vocab - N_SPECIAL - len(letters)):
        first = letters[k // 256] if k < 65536 else pairs[k // 256 - 256]
        second = letters[k % 256]
        if k < 65536:
            pairs.append(first + second)
        tokens.append(first + second)
        merges.append([first, second])
    special = special_tokens(vocab)
    plain = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": len(tokens) + i, "content": name, **flags} for i, name in enumerate(special)
        ],
        "normalizer": None, "pre_tokenizer": {"type": "ByteLevel", **plain}, "post_processor": None,
        "decoder": {"type": "ByteLevel", **plain},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "vocab": {t: i for i, t in enumerate([*tokens, *special])}, "merges": merges,
        },
    }  # fmt: skip


def _letters() -> list[str]:
    """The characters that stand for the 256 bytes: themselves where they print, else from 256 on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    more = iter(range(256, 512))
    return [chr(b if b in shown else next(more)) for b in range(256)]
