"""Hugging Face folders: config.json, generation_config.json and safetensors files, sharded or not.

The safetensors header is parsed here rather than by its library, because tensors must stay views of
one map and because every number in it is checked against the size of the file before it is used.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np

from pronghorn.errors import CheckpointError, UnsupportedError
from pronghorn.model import names
from pronghorn.model.arch import require_architecture
from pronghorn.model.checkpoint import (
    Array,
    ArrayEntry,
    Checkpoint,
    Entry,
    TensorInfo,
    finish,
    map_file,
    view,
)
from pronghorn.model.packed import join

MAX_HEADER = 100 << 20  # the limit of the safetensors library itself
MAX_JSON = 64 << 20

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_folder(folder: Path, only: str = "") -> Checkpoint:
    """Open a Hugging Face folder; `only` names the single .safetensors file to read when given.

    Raises CheckpointError or UnsupportedError; reads no tensor data.
    """
    config = read_json(folder / "config.json", MAX_JSON)
    generation: dict[str, Any] = {}
    if (folder / "generation_config.json").exists():
        generation = read_json(folder / "generation_config.json", MAX_JSON)
    quantization = _quantization(folder, config)
    model_type = names.normalise_config(config, str(folder / "config.json"))["model_type"]
    require_architecture(model_type)
    arrays: dict[str, ArrayEntry] = {}
    files = [(file, map_file(file)) for file in _files(folder, only)]
    for file, data in files:
        for stored, entry in _parse(file, data).items():
            for name, part in _rename(stored, entry, model_type):
                if name in arrays:
                    raise CheckpointError(f"{file}: tensor {name} appears a second time")
                arrays[name] = part
            names.check_count(len(arrays))
    entries: dict[str, Entry] = dict(arrays)
    if quantization is not None:
        from pronghorn.model.quantized.scheme import gather

        entries = gather(arrays, quantization, model_type, str(folder / "config.json"))
    entries = join(folder, entries)
    for name, made in entries.items():
        if isinstance(made, ArrayEntry) and made.info.dtype.startswith("F8"):
            raise UnsupportedError(
                f"{folder}: tensor {name} has dtype {made.info.dtype} without a scale that the "
                "quantization_config in config.json explains; Pronghorn does not read it"
            )
    eos = token_ids(generation.get("eos_token_id")) or token_ids(_text(config, "eos_token_id"))
    bos = token_ids(_text(config, "bos_token_id")) or token_ids(generation.get("bos_token_id"))
    path = folder / only if only else folder
    return finish(path, "hf", config, entries, eos, bos[0] if bos else -1, [data for _, data in files])


def _quantization(folder: Path, config: dict[str, Any]) -> Mapping[str, Any] | None:
    """What the folder says about quantized weights; removes it from the config. Early checkpoints of GPTQ
    say it in a file of its own."""
    from pronghorn.model.quantized.scheme import take_settings

    found = take_settings(config)
    if found is None and (folder / "quantize_config.json").exists():
        found = {"quant_method": "gptq", **read_json(folder / "quantize_config.json", MAX_JSON)}
    return found


def _text(config: Mapping[str, Any], key: str) -> Any:
    text = config.get("text_config")
    inner = text.get(key) if isinstance(text, dict) else None
    return config.get(key) if inner is None else inner


def token_ids(value: Any) -> tuple[int, ...]:
    """Token ids written as one number, a list or null. Raises CheckpointError for anything else."""
    listed = [] if value is None else value if isinstance(value, list) else [value]
    if any(type(i) is not int or not 0 <= i <= names.MAX_DIM for i in listed):
        raise CheckpointError(f"token ids must be whole numbers, not {names.shown(value)}")
    return tuple(listed)


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """A JSON object of at most `limit` bytes. Raises CheckpointError for anything else."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a regular file")
        if status.st_size > limit:
            raise CheckpointError(f"{path} has {status.st_size} bytes; at most {limit} are read")
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing; a model folder needs it beside its .safetensors files"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    return _object(text, str(path))


def _object(text: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{where} is not valid JSON: {reason}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} must hold a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise CheckpointError(f"key {names.shown(twice)} appears twice")
    return out


def _files(folder: Path, only: str) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = _shards(index)
        if not only or only in shards:
            return [folder / shard for shard in shards]
    if only:
        return [folder / only]
    single = folder / "model.safetensors"
    if single.exists():
        return [single]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        raise CheckpointError(
            f"{folder} holds {len(found)} .safetensors files and no "
            "model.safetensors.index.json to "
            "say which belong together; fetch the index, or name one file"
        )
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder} holds only {pickles[0]}, a pickle, which can run code when it is read; "
            "convert it to safetensors (transformers: save_pretrained) and try again"
        )
    raise CheckpointError(f"{folder} holds no .safetensors file; the download may not have finished")


def _shards(index: Path) -> list[str]:
    weight_map = read_json(index, MAX_HEADER).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    shards = sorted({str(shard) for shard in weight_map.values()})
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {names.shown(shard)}, which is no file beside it")
        if not (index.parent / shard).exists():
            raise CheckpointError(f"{index.parent / shard} is missing, though {index.name} names it")
    return shards


def read_safetensors(path: Path) -> dict[str, ArrayEntry]:
    """Entries of one file by stored name, in the order of their data.

    Raises CheckpointError when the header disagrees with itself or with the file's size.
    """
    return _parse(path, map_file(path))


def _parse(path: Path, data: Array) -> dict[str, ArrayEntry]:
    """The same of a file whose bytes are `data`."""
    if data.size < 8:
        raise CheckpointError(f"{path} has {data.size} bytes: too short for a safetensors header")
    n_header = int.from_bytes(data[:8].tobytes(), "little")
    if not 2 <= n_header <= data.size - 8:
        raise CheckpointError(
            f"{path}: the header claims {n_header} bytes in a file of {data.size}; the file is "
            "truncated or is not safetensors"
        )
    if n_header > MAX_HEADER:
        raise CheckpointError(f"{path}: the header claims {n_header} bytes; at most {MAX_HEADER} are read")
    header = _object(data[8 : 8 + n_header].tobytes(), f"{path} (header)")
    header.pop("__metadata__", None)
    base = 8 + n_header
    room = data.size - base
    spans = [(name, *_span(path, name, value, room)) for name, value in header.items()]
    spans.sort(key=lambda span: (span[3], span[4]))
    at = 0
    entries: dict[str, ArrayEntry] = {}
    for name, code, shape, start, stop in spans:
        if start < at:
            raise CheckpointError(f"{path}: tensor {names.shown(name)} overlaps the one before it")
        at = stop
        info = TensorInfo(name, shape, code, stop - start)
        entries[name] = ArrayEntry(info, _reader(data, base + start, shape, _DTYPES[code]))
    return entries


def _span(path: Path, name: str, value: Any, room: int) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype code, shape, start, stop) of one header entry, checked against `room` data bytes."""
    what = f"{path}: tensor {names.shown(name)}"
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} has no description")
    code, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(code, str):
        raise CheckpointError(f"{what} has no dtype")
    if code not in _DTYPES:
        raise UnsupportedError(
            f"{what} has dtype {names.shown(code)}, which Pronghorn does not read; "
            f"it reads {', '.join(_DTYPES)}"
        )
    if not _whole(shape) or len(shape) > 8:
        raise CheckpointError(f"{what} has shape {names.shown(shape)}")
    if not _whole(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{what} has offsets {names.shown(offsets)}")
    start, stop = offsets
    if not start <= stop <= room:
        raise CheckpointError(
            f"{what} lies at bytes {start} to {stop}, but the file holds {room} bytes of data; "
            "it is truncated or damaged"
        )
    nbytes = _DTYPES[code].itemsize
    for dim in shape:
        nbytes *= dim
    if nbytes != stop - start:
        raise CheckpointError(
            f"{what} of shape {tuple(shape)} in {code} needs {nbytes} bytes, but {stop - start} are given"
        )
    return code, tuple(shape), start, stop


def _whole(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(v) is int and 0 <= v <= 2**62 for v in values)


def _reader(data: Array, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Callable[[], Array]:
    return lambda: view(data, start, shape, dtype)


def _rename(stored: str, entry: ArrayEntry, model_type: str) -> Iterable[tuple[str, ArrayEntry]]:
    """Canonical names of one stored tensor: none, one, or one for each fused expert."""
    name = names.canonical(stored, model_type)
    if not name:
        return
    info = entry.info
    fused = names.fused_experts(name, info.shape)
    if fused is None:
        yield name, ArrayEntry(TensorInfo(name, info.shape, info.dtype, info.nbytes), entry.read)
        return
    layer, parts = fused
    n_experts, n_rows, n_cols = info.shape
    rows = n_rows // len(parts)
    nbytes = info.nbytes // (n_experts * len(parts))
    names.check_count(n_experts)
    for expert in range(n_experts):
        for i, part in enumerate(parts):
            each = names.expert_name(layer, model_type, expert, part)
            yield (
                each,
                ArrayEntry(
                    TensorInfo(each, (rows, n_cols), info.dtype, nbytes),
                    _slice(entry.read, expert, i * rows, (i + 1) * rows),
                ),
            )


def _slice(read: Callable[[], Array], expert: int, start: int, stop: int) -> Callable[[], Array]:
    return lambda: read()[expert, start:stop]
