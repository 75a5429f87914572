"""Write a llama2.c checkpoint, version 0, and its vocabulary where the format can hold it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pronghorn.errors import CheckpointError, UnsupportedError
from pronghorn.model import llama2c
from pronghorn.model.checkpoint import Array, Checkpoint
from pronghorn.model.writing import Progress, cast, count, source_folder


def write_llama2c(checkpoint: Checkpoint, path: Path, progress: Progress) -> tuple[str, ...]:
    """Write .bin file `path`, always f32; returns what had to be left out.

    Raises UnsupportedError for a model that the format cannot express.
    """
    config = checkpoint.config
    _require_plain_llama(checkpoint)
    vocab, seq = config["vocab_size"], config["max_position_embeddings"]
    tied = "lm_head.weight" not in checkpoint.tensors
    fields = (
        config["hidden_size"],
        config["intermediate_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["num_key_value_heads"],
    )
    blocks = llama2c.layout(*fields, vocab, seq, tied)
    total = 4 * sum(count(shape) for _, shape in blocks)
    done = 0
    with open(path, "wb") as file:
        file.write(llama2c.HEADER.pack(*fields, vocab if tied else -vocab, seq))
        for template, shape in blocks:
            for layer in range(shape[0] if "{}" in template else 1):
                array = _llama2c_block(checkpoint, template.format(layer), shape)
                done += file.write(array.reshape(-1).view(np.uint8).data)
                progress(done, total)
    notes: tuple[str, ...] = ()
    if config["rope_theta"] != 10000.0:
        notes = (
            f"llama2.c's own programs assume rope_theta 10000 and this model has "
            f"{config['rope_theta']:g}, which only the frequency tables in the file can tell",
        )
    return notes + _write_vocabulary(checkpoint, path) + _write_beside(checkpoint, path)


def _write_beside(checkpoint: Checkpoint, path: Path) -> tuple[str, ...]:
    """tokenizer.json, and generation_config.json: the format itself knows no ids but 1 and 2."""
    ends = {"bos_token_id": checkpoint.bos, "eos_token_id": list(checkpoint.eos)}
    files: dict[str, bytes] = {}
    if (checkpoint.bos, checkpoint.eos) != (llama2c.BOS, (llama2c.EOS,)):
        files["generation_config.json"] = json.dumps(ends).encode()
    if checkpoint.kind == "hf":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (source_folder(checkpoint) / name).is_file():
                files[name] = (source_folder(checkpoint) / name).read_bytes()
    notes: tuple[str, ...] = ()
    for name, data in files.items():
        if (path.parent.parent / name).exists():
            notes += (f"{name} beside the target was kept; the model's own was not written",)
        else:
            (path.parent / name).write_bytes(data)
    return notes


def _require_plain_llama(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    for key in ("vocab_size", "max_position_embeddings", "intermediate_size", "rms_norm_eps"):
        if config["model_type"] == "llama" and config.get(key) is None:
            raise CheckpointError(f"{checkpoint.path}: the config has no {key}")
    reasons = []
    if config["model_type"] != "llama":
        reasons.append(f"architecture {config['model_type']}")
    elif config["head_dim"] * config["num_attention_heads"] != config["hidden_size"]:
        reasons.append(f"head_dim {config['head_dim']}")
    if config.get("rope_scaling"):
        reasons.append("rope scaling")
    if config["rms_norm_eps"] != 1e-5:
        reasons.append(f"rms_norm_eps {config['rms_norm_eps']:g} (only 1e-05)")
    if any(name.endswith(".bias") for name in checkpoint.tensors):
        reasons.append("biases")
    if reasons:
        raise UnsupportedError(
            f"llama2.c files cannot express {', '.join(reasons)}; convert to .gguf or to a folder"
        )


def _llama2c_block(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Array:
    config = checkpoint.config
    if name.startswith("rope."):
        angles = llama2c.angles(shape[0], config["head_dim"], config["rope_theta"])
        return cast(np.cos(angles) if name == "rope.real" else np.sin(angles), np.dtype("<f4"))
    if name not in checkpoint.tensors:
        raise CheckpointError(f"{checkpoint.path} holds no {name}")
    array = checkpoint.tensors.dense(name)
    want = shape[1:] if name.startswith("model.layers.") else shape
    if array.shape != want:
        raise CheckpointError(f"config calls for {name} of {want} but it is {array.shape}")
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        array = llama2c.to_pairs(array, config["head_dim"])
    return cast(array, np.dtype("<f4"))


def _write_vocabulary(checkpoint: Checkpoint, path: Path) -> tuple[str, ...]:
    """tok*.bin beside the model. Only SentencePiece-style vocabularies fit its rules."""
    n_tokens = checkpoint.config["vocab_size"]
    pieces: list[tuple[bytes, float]] = []
    if checkpoint.kind == "llama2c":
        beside = llama2c.find_vocabulary(checkpoint.path, n_tokens)
        if beside is not None:
            pieces = llama2c.read_vocabulary(beside, n_tokens)
    elif checkpoint.gguf_metadata.get("tokenizer.ggml.model") == "llama":
        tokens = checkpoint.gguf_metadata.get("tokenizer.ggml.tokens", [])
        scores = checkpoint.gguf_metadata.get("tokenizer.ggml.scores", [])
        if len(tokens) == len(scores) == n_tokens:
            texts = [str(token).replace("\u2581", " ").encode() for token in tokens]
            pieces = list(zip(texts, (float(score) for score in scores), strict=True))
    if not pieces:
        return (
            "no vocabulary was written beside it: llama2.c's format holds SentencePiece "
            "pieces with "
            "scores, and the source has none. Keep its tokenizer.json beside the .bin",
        )
    if not (path.parent.parent / f"tok{n_tokens}.bin").exists():
        (path.parent / f"tok{n_tokens}.bin").write_bytes(llama2c.pack_vocabulary(pieces))
    return ()
