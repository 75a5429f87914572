"""Writing tensors as safetensors files, and the folder that a quantized model is."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.model.checkpoint import Checkpoint
from pronghorn.model.packed import FILE, describe, whole
from pronghorn.model.write_hf import write_about
from pronghorn.model.writing import Progress, replacing
from pronghorn.ops.codes import Codes
from pronghorn.ops.panels import pack
from pronghorn.types import Packed

SHARD = 4 << 30  # bytes of a file, unless one tensor alone is larger
DTYPES = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint8": "U8", "int32": "I32", "float64": "F64"
}  # fmt: skip
LINE = 64  # panels start at a multiple of this, so that they are read from the map as they lie


def parts(made: Mapping[str, Any]) -> tuple[dict[str, NDArray[Any]], dict[str, dict[str, Any]]]:
    """Arrays by stored name, and what `packed.json` says. made: name -> `Packed` or an array."""
    arrays: dict[str, NDArray[Any]] = {}
    described = {}
    for name, value in made.items():
        if isinstance(value, Codes):
            value = pack(value)
        if not isinstance(value, Packed):
            arrays[name] = value
        elif value.kind in ("codes", "float8"):
            described[name] = describe(value)
            arrays |= {f"{name}.{part}": a for part, a in value.fields.items()}
        else:
            arrays[name] = value.fields["w"]
    return arrays, described


def write_tensors(path: Path, arrays: Mapping[str, NDArray[Any]], progress: Progress) -> None:
    """One .safetensors file, on the disk when this returns; what is a multiple of 64 bytes long lies first,
    aligned. `progress` counts bytes."""
    order = sorted(arrays, key=lambda name: bool(arrays[name].nbytes % LINE))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in order:
        a = arrays[name]
        stop = at + a.nbytes
        header[name] = {
            "dtype": DTYPES[a.dtype.name], "shape": list(a.shape), "data_offsets": [at, stop]
        }  # fmt: skip
        at = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % LINE)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        done = 0
        for name in order:
            data = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8)
            for i in range(0, len(data), 1 << 24):
                done += file.write(data[i : i + (1 << 24)].data)
                progress(done, at)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """A small file, on the disk when this returns."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def shards(arrays: Mapping[str, NDArray[Any]], limit: int) -> list[dict[str, NDArray[Any]]]:
    """The arrays in files of at most `limit` bytes, in order."""
    out: list[dict[str, NDArray[Any]]] = [{}]
    room = limit
    for name, a in arrays.items():
        if a.nbytes > room and out[-1]:
            out.append({})
            room = limit
        out[-1][name] = a
        room -= a.nbytes
    return out


def write_folder(
    checkpoint: Checkpoint, made: Mapping[str, Any], out: Path, progress: Progress, limit: int = SHARD
) -> tuple[str, ...]:
    """The folder `out`, whole or not at all: what was made, the checkpoint's other tensors as they were,
    config and tokenizer. Returns what had to be left out. Raises `CheckpointError`, also for a full disk."""
    others = {n: checkpoint.tensors[n] for n in checkpoint.tensors if n not in made}
    arrays, described = parts({**made, **others})
    total, done = sum(a.nbytes for a in arrays.values()), 0
    with replacing(out) as folder:
        folder.mkdir()
        files = shards(arrays, limit)
        index: dict[str, str] = {}
        for i, some in enumerate(files):
            name = "model.safetensors"
            if len(files) > 1:
                name = f"model-{i + 1:05}-of-{len(files):05}.safetensors"
            before = done

            def count(n: int, _: int, before: int = before) -> None:
                progress(before + n, total)

            write_tensors(folder / name, some, count)
            index |= dict.fromkeys(some, name)
            done += sum(a.nbytes for a in some.values())
        if len(files) > 1:
            content = {"metadata": {"total_size": total}, "weight_map": index}
            (folder / "model.safetensors.index.json").write_text(json.dumps(content))
        (folder / FILE).write_text(json.dumps(whole(described)))
        return write_about(checkpoint, folder)
