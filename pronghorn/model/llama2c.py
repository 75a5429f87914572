"""llama2.c checkpoints, version 0: seven int32, then float32 tensors with no names.

The layout is that of `run.c` in karpathy/llama2.c. Its rope rotates neighbouring pairs of a head,
where Hugging Face's rotates the two halves, so the rows of q and k are reordered on access. The
frequency tables at the end, which run.c skips, serve only to learn rope's base.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pronghorn.errors import CheckpointError
from pronghorn.model.checkpoint import Array, Checkpoint, Entry, TensorInfo, finish, map_file, view
from pronghorn.model.hf import MAX_JSON, read_json, token_ids

HEADER = struct.Struct("<7i")
_FLOAT = np.dtype("<f4")
_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
BOS, EOS = 1, 2


def layout(
    dim: int, hidden: int, n_layers: int, n_heads: int, n_kv: int, vocab: int, seq: int, tied: bool
) -> list[tuple[str, tuple[int, ...]]]:
    """Blocks of the file in order: Hugging Face's suffix (one block holds every layer) and shape.

    Names starting with "rope." are the frequency tables.
    """
    head = dim // n_heads
    layers = "model.layers.{}."
    return [
        ("model.embed_tokens.weight", (vocab, dim)),
        (layers + "input_layernorm.weight", (n_layers, dim)),
        (layers + "self_attn.q_proj.weight", (n_layers, dim, dim)),
        (layers + "self_attn.k_proj.weight", (n_layers, n_kv * head, dim)),
        (layers + "self_attn.v_proj.weight", (n_layers, n_kv * head, dim)),
        (layers + "self_attn.o_proj.weight", (n_layers, dim, dim)),
        (layers + "post_attention_layernorm.weight", (n_layers, dim)),
        (layers + "mlp.gate_proj.weight", (n_layers, hidden, dim)),
        (layers + "mlp.down_proj.weight", (n_layers, dim, hidden)),
        (layers + "mlp.up_proj.weight", (n_layers, hidden, dim)),
        ("model.norm.weight", (dim,)),
        ("rope.real", (seq, head // 2)),
        ("rope.imag", (seq, head // 2)),
        *([] if tied else [("lm_head.weight", (vocab, dim))]),
    ]


def load_llama2c(path: Path) -> Checkpoint:
    """Open a llama2.c version 0 file. Raises CheckpointError unless its size fits its header."""
    data = map_file(path)
    magic = data[:4].tobytes()
    # A width of 640 also begins with 80 02, but zeros follow there; in a pickle an opcode does.
    protocol = magic[:1] == b"\x80" and magic[1:2] <= b"\x05" and any(magic[2:])
    if magic == b"PK\x03\x04" or protocol:
        raise CheckpointError(
            f"{path} is a pickle, which can run code when it is read; convert it to safetensors "
            "(transformers: save_pretrained) and try again"
        )
    if int.from_bytes(magic, "little") == 0x616B3432:
        raise CheckpointError(f"{path} is a llama2.c file of a later version; export it as version 0")
    if data.size < HEADER.size:
        raise CheckpointError(f"{path} has {data.size} bytes: too short for a llama2.c header")
    values = HEADER.unpack(data[: HEADER.size].tobytes())
    dim, hidden, n_layers, n_heads, n_kv, vocab, seq = values
    tied = vocab > 0
    vocab = abs(vocab)
    said = ", ".join(f"{k} {v}" for k, v in zip(_FIELDS, values, strict=True))
    if min(dim, hidden, n_layers, n_heads, n_kv, vocab, seq) < 1:
        raise CheckpointError(f"{path} is not a llama2.c checkpoint (its header reads {said})")
    if dim % n_heads or (dim // n_heads) % 2 or n_heads % n_kv:
        raise CheckpointError(f"{path}: heads do not divide the width (its header reads {said})")
    blocks = layout(dim, hidden, n_layers, n_heads, n_kv, vocab, seq, tied)
    size = HEADER.size + 4 * sum(_count(shape) for _, shape in blocks)
    if size != data.size:
        raise CheckpointError(
            f"{path} has {data.size} bytes, but its header ({said}) calls for {size}; the file is "
            "truncated or is not a llama2.c checkpoint"
        )
    entries = _entries(data, blocks, dim // n_heads)
    config = {
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv,
        "head_dim": dim // n_heads,
        "vocab_size": vocab,
        "max_position_embeddings": seq,
        "rms_norm_eps": 1e-5,
        "rope_theta": _theta(data, _rope_start(blocks), seq, dim // n_heads),
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
    }
    eos, bos = _ends(path)
    return finish(path, "llama2c", config, entries, eos, bos, (data,))


def _ends(path: Path) -> tuple[tuple[int, ...], int]:
    """The format's fixed ids (2 ends, 1 begins), or those of a generation_config.json beside it."""
    beside = path.parent / "generation_config.json"
    if not beside.exists():
        return (EOS,), BOS
    generation = read_json(beside, MAX_JSON)
    bos = generation.get("bos_token_id")
    eos = token_ids(generation.get("eos_token_id")) or (EOS,)
    return eos, bos if bos == -1 else (token_ids(bos) or (BOS,))[0]


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count


def _rope_start(blocks: list[tuple[str, tuple[int, ...]]]) -> int:
    at = [name for name, _ in blocks].index("rope.real")
    return HEADER.size + 4 * sum(_count(shape) for _, shape in blocks[:at])


def _entries(data: Array, blocks: list[tuple[str, tuple[int, ...]]], head: int) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    start = HEADER.size
    for template, shape in blocks:
        per_layer = "{}" in template
        for layer in range(shape[0] if per_layer else 1):
            name = template.format(layer)
            part = shape[1:] if per_layer else shape
            nbytes = 4 * _count(part)
            if not name.startswith("rope."):
                paired = name.endswith(("q_proj.weight", "k_proj.weight"))
                read = _reader(data, start, part, head if paired else 0)
                entries[name] = Entry(TensorInfo(name, part, "F32", nbytes), read)
            start += nbytes
    return entries


def _reader(data: Array, start: int, shape: tuple[int, ...], head: int) -> Callable[[], Array]:
    if head:
        return lambda: to_halves(view(data, start, shape, _FLOAT), head)
    return lambda: view(data, start, shape, _FLOAT)


def to_halves(weight: Array, head: int) -> Array:
    """Rows ordered as rotated pairs -> as rotated halves, within each head of `head` rows."""
    pairs = weight.reshape(-1, head // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def to_pairs(weight: Array, head: int) -> Array:
    """The inverse of `to_halves`."""
    halves = weight.reshape(-1, 2, head // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def angles(seq: int, head: int, theta: float) -> Array:
    """Rope's angles, (seq, head // 2) in float64: position times theta to the power -2i/head."""
    powers = np.arange(0, head, 2, dtype=np.float64) / head
    return np.outer(np.arange(seq, dtype=np.float64), theta**-powers)


def _theta(data: Array, start: int, seq: int, head: int) -> float:
    """rope_theta from the frequency tables at byte `start`; 10000, which run.c assumes, if they
    lie.

    The header has no room for it, so a model trained with another base would read back wrong.
    """
    if seq < 2 or head < 4:
        return 10000.0
    real = view(data, start, (seq, head // 2), _FLOAT)
    imag = view(data, start + real.nbytes, (seq, head // 2), _FLOAT)
    last = head // 2 - 1
    slowest = float(np.arctan2(np.float64(imag[1, last]), np.float64(real[1, last])))
    if not 0 < slowest < 1:
        return 10000.0
    theta = float(f"{slowest ** (-head / (2 * last)):.5g}")
    rows = min(seq, 64)
    want = angles(rows, head, theta)
    close = np.allclose(real[:rows], np.cos(want), rtol=0, atol=1e-4) and np.allclose(
        imag[:rows], np.sin(want), rtol=0, atol=1e-4
    )
    return theta if close else 10000.0


def find_vocabulary(model: Path, n_tokens: int) -> Path | None:
    """The tokenizer .bin beside `model`: tok<n>.bin, or tokenizer.bin as llama2.c calls it."""
    for name in (f"tok{n_tokens}.bin", "tokenizer.bin"):
        if (model.parent / name).is_file():
            return model.parent / name
    return None


def read_vocabulary(path: Path, n_tokens: int) -> list[tuple[bytes, float]]:
    """(piece, score) of each token. Raises CheckpointError unless there are `n_tokens`."""
    raw = map_file(path).tobytes()
    at = 4
    pieces: list[tuple[bytes, float]] = []
    for _ in range(n_tokens):
        if at + 8 > len(raw):
            break
        score, n = struct.unpack_from("<fi", raw, at)
        if not 0 <= n <= len(raw) - at - 8:
            raise CheckpointError(f"{path}: token {len(pieces)} claims {n} bytes; it is damaged")
        pieces.append((raw[at + 8 : at + 8 + n], score))
        at += 8 + n
    if len(pieces) != n_tokens or at != len(raw):
        raise CheckpointError(f"{path} does not hold exactly {n_tokens} tokens")
    return pieces


def pack_vocabulary(pieces: list[tuple[bytes, float]]) -> bytes:
    """Inverse of `read_vocabulary`: longest length, then score, length and bytes of each."""
    parts = [struct.pack("<i", max(len(piece) for piece, _ in pieces))]
    for piece, score in pieces:
        parts.append(struct.pack("<fi", score, len(piece)) + piece)
    return b"".join(parts)
