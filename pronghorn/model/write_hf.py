"""Write a Hugging Face folder: config.json, one model.safetensors, the tokenizer's files."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np

from pronghorn.model.checkpoint import Checkpoint
from pronghorn.model.writing import FLOATS, Progress, cast, config_json, count, source_folder

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
)


def write_folder(checkpoint: Checkpoint, path: Path, dtype: str, progress: Progress) -> tuple[str, ...]:
    """Make folder `path` with every tensor in `dtype`; returns what had to be left out."""
    path.mkdir()
    code = {"f32": "F32", "f16": "F16", "bf16": "BF16"}[dtype]
    out = FLOATS[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for info in checkpoint.tensor_info():
        nbytes = out.itemsize * count(info.shape)
        header[info.name] = {
            "dtype": code,
            "shape": list(info.shape),
            "data_offsets": [at, at + nbytes],
        }
        at += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        done = 0
        for name in checkpoint.tensors:
            done += file.write(cast(checkpoint.tensors.dense(name), out).reshape(-1).view(np.uint8).data)
            progress(done, at)
    return write_about(checkpoint, path, {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype])


def write_about(checkpoint: Checkpoint, path: Path, dtype: str = "") -> tuple[str, ...]:
    """config.json, saying `dtype` unless it is "", and the tokenizer's files, into folder `path`; returns
    what had to be left out."""
    config = config_json(checkpoint)
    if dtype:
        config["dtype"] = dtype
    (path / "config.json").write_text(json.dumps(config, indent=1))
    copied = [name for name in _TOKENIZER_FILES if (source_folder(checkpoint) / name).is_file()]
    if checkpoint.kind == "hf":
        for name in copied:
            shutil.copyfile(source_folder(checkpoint) / name, path / name)
    elif isinstance(own := checkpoint.gguf_metadata.get("tokenizer.huggingface.json"), str):
        (path / "tokenizer.json").write_text(own)
        if isinstance(template := checkpoint.gguf_metadata.get("tokenizer.chat_template"), str):
            (path / "chat_template.jinja").write_text(template)
    if not (path / "tokenizer.json").exists():
        return ("the source has no tokenizer.json, so the folder has none: add one to use it",)
    return ()
