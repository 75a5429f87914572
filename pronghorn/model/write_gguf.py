"""Write a GGUF file as llama.cpp expects it, with the tokenizer inside.

Vectors (norms, biases) are F32 whatever the target type, and Gemma's norm weights have 1 added:
those come back within half a unit of float32 at 1 rather than bit for bit when the source was
float32. The package's writer lays out the file; tensors are made one at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pronghorn.errors import CheckpointError
from pronghorn.model import gguf_map, llama2c
from pronghorn.model.checkpoint import Array, Checkpoint
from pronghorn.model.gguf_tokenizer import add_tokenizer
from pronghorn.model.writing import FLOATS, Progress, cast, config_json, count


def write_gguf(checkpoint: Checkpoint, path: Path, dtype: str, progress: Progress) -> tuple[str, ...]:
    """Write GGUF file `path` with matrices in `dtype`; returns what had to be left out."""
    try:
        arch, settings = gguf_map.config_to(checkpoint.config)
    except KeyError as error:
        raise CheckpointError(f"{checkpoint.path}: the config has no {error.args[0]}") from error
    import gguf

    writer = gguf.GGUFWriter(path, arch)
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    file_types = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}
    writer.add_uint32("general.file_type", file_types[dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in settings.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add.get(type(value), writer.add_string)(key, value)
    writer.add_string(gguf_map.OWN_CONFIG, json.dumps(config_json(checkpoint)))
    notes = add_tokenizer(writer, checkpoint)
    jobs = _jobs(checkpoint, arch, kind)
    for job in jobs:
        writer.add_tensor_info(job.name, job.shape, np.dtype(np.float32), job.nbytes, raw_dtype=job.kind)
    total = sum(job.nbytes for job in jobs)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done = 0
        for job in jobs:
            writer.write_tensor_data(job.make())
            done += job.nbytes
            progress(done, total)
        writer.flush()
    finally:
        writer.close()
    if checkpoint.config["model_type"] in ("gemma2", "gemma3_text"):
        notes += ("GGUF stores Gemma's norm weights with 1 added, rounded to float32",)
    short = sum(job.kind != kind and len(job.shape) > 1 for job in jobs)
    if short:
        notes += (f"{short} tensors keep their float type: their rows are no multiple of 32",)
    return notes


@dataclass(frozen=True)
class _Job:
    name: str
    shape: tuple[int, ...]  # of values, rows first
    nbytes: int
    kind: Any  # gguf.GGMLQuantizationType
    make: Callable[[], Array]


def _jobs(checkpoint: Checkpoint, arch: str, kind: Any) -> list[_Job]:
    """One job for each GGUF tensor; a layer's experts are stacked into one."""
    import gguf

    groups: dict[str, list[tuple[gguf_map.Place, str]]] = {}
    for name in checkpoint.tensors:
        place = gguf_map.to_gguf(name, arch)
        groups.setdefault(place.name, []).append((place, name))
    jobs = [_factors_job(name, values) for name, values in _rope_tensors(checkpoint.config).items()]
    for name, members in groups.items():
        members.sort(key=lambda member: member[0].expert)
        place = members[0][0]
        shape = checkpoint.tensors.info(members[0][1]).shape
        if place.change == "transpose":
            shape = shape[::-1]
        if place.part:
            if [m[0].expert for m in members] != list(range(len(members))):
                raise CheckpointError(f"{name}: some experts are missing from the checkpoint")
            shape = (len(members), *shape)
        used = kind
        if len(shape) == 1:
            used = gguf.GGMLQuantizationType.F32
        elif shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            stored = checkpoint.tensors.info(members[0][1]).dtype
            half = stored if stored in ("F16", "BF16") else "F32"
            used = gguf.GGMLQuantizationType[half]
        block, block_bytes = gguf.GGML_QUANT_SIZES[used]
        nbytes = count(shape) // block * block_bytes
        jobs.append(_Job(name, shape, nbytes, used, _maker(checkpoint, members, used)))
    return jobs


def _maker(
    checkpoint: Checkpoint, members: list[tuple[gguf_map.Place, str]], kind: Any
) -> Callable[[], Array]:
    head = checkpoint.config.get("head_dim") or 0

    def one(place: gguf_map.Place, name: str) -> Array:
        array = checkpoint.tensors.dense(name)
        if place.change == "pairs":
            array = llama2c.to_pairs(array, head)
        elif place.change == "transpose":
            array = array.T
        elif place.change == "plus_one":
            array = array.astype(np.float32) + np.float32(1)
        return _encode(array, kind)

    def make() -> Array:
        if members[0][0].part:
            return np.stack([one(place, name) for place, name in members])
        return one(*members[0])

    return make


def _encode(array: Array, kind: Any) -> Array:
    """Bytes of `array` as GGUF stores them: a float array, or uint8 for quantized types."""
    if kind.name in ("F32", "F16", "BF16"):
        plain = cast(array, FLOATS[kind.name.lower()])
        return plain.view(np.uint16) if kind.name == "BF16" else plain
    from gguf.quants import quantize

    packed: Array = quantize(cast(array, np.dtype("<f4")), kind)
    return packed


def _rope_tensors(config: dict[str, Any]) -> dict[str, list[float]]:
    """The scalings that llama.cpp keeps as tensors: Phi-3's factors and Llama 3's frequencies."""
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "longrope":
        return {
            "rope_factors_long.weight": scaling["long_factor"],
            "rope_factors_short.weight": scaling["short_factor"],
        }
    if scaling.get("rope_type") == "llama3":
        return {"rope_freqs.weight": _llama3_factors(config, scaling)}
    return {}


def _llama3_factors(config: dict[str, Any], scaling: dict[str, Any]) -> list[float]:
    """Divisor of each rope frequency: Llama 3.1 divides long waves by `factor`."""
    head = config["head_dim"]
    frequency = config["rope_theta"] ** -(np.arange(0, head, 2, dtype=np.float64) / head)
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * np.pi)
    low, high, factor = (
        scaling["low_freq_factor"],
        scaling["high_freq_factor"],
        scaling["factor"],
    )
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    divisor = 1 / ((1 - smooth) / factor + smooth)
    return [float(d) for d in divisor]


def _factors_job(name: str, values: list[float]) -> _Job:
    import gguf

    array = np.array(values, dtype="<f4")
    return _Job(name, array.shape, array.nbytes, gguf.GGMLQuantizationType.F32, lambda: array)
