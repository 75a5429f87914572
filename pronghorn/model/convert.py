"""From any readable checkpoint to GGUF, to a Hugging Face folder, or to llama2.c's .bin.

Everything is written beside the target under a temporary name and renamed at the end, so a full disk or
Ctrl-C leaves the target as it was. Tensors pass through one at a time.

GGUF files hold vectors (norms, biases) as F32 whatever the target type, as llama.cpp expects, and
Gemma's norm weights with 1 added: those come back within half a unit of float32 at 1 rather than bit
for bit when the source was float32.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pronghorn.errors import CheckpointError, UnsupportedError
from pronghorn.model import gguf_map, llama2c
from pronghorn.model.checkpoint import Array, Checkpoint, load_checkpoint
from pronghorn.model.hf import MAX_JSON, read_json

Progress = Callable[[int, int], None]

_FLOATS: dict[str, np.dtype[Any]] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
_QUANTIZED = ("q8_0", "q4_0")
DTYPES: tuple[str, ...] = (*_FLOATS, *_QUANTIZED)
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


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote, and what it had to leave out, one sentence each."""

    path: Path
    nbytes: int
    notes: tuple[str, ...] = ()


def quiet(done: int, total: int) -> None:
    """Progress for callers that want none."""


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    dtype: str,
    progress: Progress = quiet,
) -> Converted:
    """Write `source` to `target`: a .gguf file, a .bin file (llama2.c), or else a folder.

    `dtype` is one of `DTYPES`; quantized types go only into GGUF, and .bin is always f32. `progress`
    is called with (bytes written, bytes in all) after each tensor. Raises CheckpointError for a source
    that cannot be read or a disk that is full, UnsupportedError for a combination that cannot be
    written.
    """
    path = Path(target)
    if dtype not in DTYPES:
        raise UnsupportedError(f"cannot convert to {dtype!r}; choose one of {', '.join(DTYPES)}")
    checkpoint = load_checkpoint(source)
    if path.suffix == ".gguf":
        write: Callable[[Checkpoint, Path, str, Progress], tuple[str, ...]] = _write_gguf
    elif path.suffix == ".bin":
        if dtype != "f32":
            raise UnsupportedError(f"llama2.c files hold f32 only; choose f32 instead of {dtype}")
        write = _write_llama2c
    else:
        if dtype in _QUANTIZED:
            raise UnsupportedError(f"{dtype} exists only in GGUF; end the target's name in .gguf")
        write = _write_folder
    if path.is_dir() and (path.suffix in (".gguf", ".bin") or any(path.iterdir())):
        raise CheckpointError(f"{path} already exists and is a folder; name another target")
    if path.exists() and not path.is_dir() and write is _write_folder:
        raise CheckpointError(f"{path} already exists and is a file; name another target")
    with _replacing(path) as temporary:
        notes = write(checkpoint, temporary, dtype, progress)
    return Converted(path, _size(path), notes)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else list(path.iterdir())
    return sum(file.stat().st_size for file in files)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name in a fresh folder beside `path`; renamed onto `path` if the body succeeds."""
    work: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary = work / path.name
        yield temporary
        for extra in work.iterdir():
            if extra != temporary:
                os.replace(extra, path.parent / extra.name)
        os.replace(temporary, path)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or (
            error.errno is None  # numpy's tofile reports a short write without saying why
        )
        if full:
            raise CheckpointError(
                f"no room to write {path} ({free:,} bytes are free there); free some space or choose "
                "another folder. Nothing was left behind"
            ) from error
        raise CheckpointError(f"cannot write {path}: {error}") from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _cast(array: Array, dtype: np.dtype[Any]) -> Array:
    if array.dtype != dtype:
        with np.errstate(over="ignore"):
            cast = array.astype(dtype)
        if dtype == np.float16 and np.isinf(cast).any() and not np.isinf(array.astype("f4")).any():
            raise UnsupportedError("some weights are too large for f16; choose bf16 or f32")
        array = cast
    return np.ascontiguousarray(array)


# Hugging Face folders.


def _write_folder(checkpoint: Checkpoint, path: Path, dtype: str, progress: Progress) -> tuple[str, ...]:
    """config.json, one model.safetensors and whatever tokenizer files the source has beside it."""
    path.mkdir()
    code = {"f32": "F32", "f16": "F16", "bf16": "BF16"}[dtype]
    out = _FLOATS[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for info in checkpoint.tensor_info():
        nbytes = out.itemsize * _count(info.shape)
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
            done += file.write(_cast(checkpoint.tensors[name], out).reshape(-1).view(np.uint8).data)
            progress(done, at)
    config = _config_json(checkpoint)
    config["dtype"] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype]
    (path / "config.json").write_text(json.dumps(config, indent=1))
    copied = [name for name in _TOKENIZER_FILES if (_folder(checkpoint) / name).is_file()]
    if checkpoint.kind == "hf":
        for name in copied:
            shutil.copyfile(_folder(checkpoint) / name, path / name)
    elif isinstance(own := checkpoint.gguf_metadata.get("tokenizer.huggingface.json"), str):
        (path / "tokenizer.json").write_text(own)
        if isinstance(template := checkpoint.gguf_metadata.get("tokenizer.chat_template"), str):
            (path / "chat_template.jinja").write_text(template)
    if not (path / "tokenizer.json").exists():
        return ("the source has no tokenizer.json, so the folder has none: add one to use it",)
    return ()


def _folder(checkpoint: Checkpoint) -> Path:
    return checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent


def _config_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config as transformers reads it: rope settings in both generations' spelling."""
    config = {key: value for key, value in checkpoint.config.items() if key != "num_local_experts"}
    if "num_experts" in config and config["model_type"] == "mixtral":
        config["num_local_experts"] = config.pop("num_experts")
    config["eos_token_id"] = list(checkpoint.eos) if len(checkpoint.eos) != 1 else checkpoint.eos[0]
    config["bos_token_id"] = checkpoint.bos if checkpoint.bos >= 0 else None
    return config


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count


# GGUF.


def _write_gguf(checkpoint: Checkpoint, path: Path, dtype: str, progress: Progress) -> tuple[str, ...]:
    import gguf

    arch, settings = gguf_map.config_to(checkpoint.config)
    writer = gguf.GGUFWriter(path, arch)
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    file_types = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}
    writer.add_uint32("general.file_type", file_types[dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in settings.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add.get(type(value), writer.add_string)(key, value)
    writer.add_string(gguf_map.OWN_CONFIG, json.dumps(_config_json(checkpoint)))
    notes = _add_tokenizer(writer, checkpoint)
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
    short = sum(job.kind.name == "F32" and len(job.shape) > 1 for job in jobs)
    if dtype in _QUANTIZED and short:
        notes += (f"{short} tensors whose rows do not divide into blocks of 32 stay F32",)
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
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if len(shape) == 1 or shape[-1] % block:
            used = gguf.GGMLQuantizationType.F32
            block, block_bytes = 1, 4
        nbytes = _count(shape) // block * block_bytes
        jobs.append(_Job(name, shape, nbytes, used, _maker(checkpoint, members, used)))
    return jobs


def _maker(
    checkpoint: Checkpoint, members: list[tuple[gguf_map.Place, str]], kind: Any
) -> Callable[[], Array]:
    head = checkpoint.config.get("head_dim") or 0

    def one(place: gguf_map.Place, name: str) -> Array:
        array = checkpoint.tensors[name]
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
        cast = _cast(array, _FLOATS[kind.name.lower()])
        return cast.view(np.uint16) if kind.name == "BF16" else cast
    from gguf.quants import quantize

    packed: Array = quantize(_cast(array, np.dtype("<f4")), kind)
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
    """Divisor of each rope frequency (Llama 3.1's rule: long waves by `factor`, short ones kept)."""
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


def _add_tokenizer(writer: Any, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Tokenizer keys, from a GGUF source's own, a tokenizer.json, or llama2.c's vocabulary."""
    for key, ids in (("eos", checkpoint.eos[:1]), ("eot", checkpoint.eos[1:2])):
        if ids:
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", ids[0])
    if checkpoint.bos >= 0:
        writer.add_uint32("tokenizer.ggml.bos_token_id", checkpoint.bos)
    if checkpoint.kind == "gguf":
        return _copy_tokenizer(writer, checkpoint)
    if checkpoint.kind == "llama2c":
        return _add_llama2c_vocabulary(writer, checkpoint)
    file = _folder(checkpoint) / "tokenizer.json"
    if not file.exists():
        return ("the source has no tokenizer.json, so the GGUF file has no tokenizer",)
    tokenizer = read_json(file, MAX_JSON)
    writer.add_string("tokenizer.huggingface.json", file.read_text(encoding="utf-8"))
    if template := _chat_template(_folder(checkpoint)):
        writer.add_string("tokenizer.chat_template", template)
    _add_vocabulary(writer, tokenizer, checkpoint.config["vocab_size"])
    return ()


def _copy_tokenizer(writer: Any, checkpoint: Checkpoint) -> tuple[str, ...]:
    import gguf

    written = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.bos_token_id"}
    written.add("tokenizer.ggml.eot_token_id")
    for key, value in checkpoint.gguf_metadata.items():
        if key in written:
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            kinds = gguf.GGUFValueType
            whole = kinds.UINT32 if type(value) is int and 0 <= value < 2**32 else kinds.INT64
            kind = {bool: kinds.BOOL, int: whole, float: kinds.FLOAT32}
            writer.add_key_value(key, value, kind.get(type(value), kinds.STRING))
    return ()


def _add_vocabulary(writer: Any, tokenizer: dict[str, Any], n_tokens: int) -> None:
    """llama.cpp's own keys from a tokenizer.json: tokens, kinds, and merges or scores."""
    model = tokenizer.get("model") or {}
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, list):  # Unigram: [piece, score] pairs
        pieces = {str(piece): i for i, (piece, _) in enumerate(vocabulary)}
        scores = [float(score) for _, score in vocabulary]
    else:
        pieces, scores = {str(piece): int(i) for piece, i in vocabulary.items()}, []
    tokens = [f"[PAD{i}]" for i in range(n_tokens)]
    kinds = [5] * n_tokens  # unused
    for piece, i in pieces.items():
        if 0 <= i < n_tokens:
            tokens[i], kinds[i] = piece, 1
    for added in tokenizer.get("added_tokens") or []:
        i = added["id"]
        if 0 <= i < n_tokens:
            tokens[i], kinds[i] = added["content"], 3 if added.get("special") else 4
    byte_fallback = bool(model.get("byte_fallback"))
    writer.add_string("tokenizer.ggml.model", "llama" if byte_fallback or scores else "gpt2")
    writer.add_string("tokenizer.ggml.pre", "default")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", kinds)
    if scores or byte_fallback:
        # A BPE with byte fallback has ranks instead of scores: earlier pieces merge first.
        ranked = scores or [float(-i) for i in range(n_tokens)]
        ranked += [0.0] * (n_tokens - len(ranked))
        writer.add_array("tokenizer.ggml.scores", ranked[:n_tokens])
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []]
    writer.add_array("tokenizer.ggml.merges", merges)


def _chat_template(folder: Path) -> str:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "tokenizer_config.json").is_file():
        template = read_json(folder / "tokenizer_config.json", MAX_JSON).get("chat_template")
        if isinstance(template, str):
            return template
    return ""


def _add_llama2c_vocabulary(writer: Any, checkpoint: Checkpoint) -> tuple[str, ...]:
    n_tokens = checkpoint.config["vocab_size"]
    beside = llama2c.find_vocabulary(checkpoint.path, n_tokens)
    if beside is None:
        return (f"no tokenizer .bin with {n_tokens} tokens lies beside {checkpoint.path.name}",)
    pieces = llama2c.read_vocabulary(beside, n_tokens)
    writer.add_string("tokenizer.ggml.model", "llama")
    writer.add_string("tokenizer.ggml.pre", "default")
    # llama2.c writes a plain space where SentencePiece has its own mark.
    texts = [piece.decode("utf-8", errors="replace").replace(" ", "\u2581") for piece, _ in pieces]
    kinds = [2, 3, 3] + [6 if _is_byte(text) else 1 for text in texts[3:]]
    writer.add_array("tokenizer.ggml.tokens", texts)
    writer.add_array("tokenizer.ggml.scores", [float(score) for _, score in pieces])
    writer.add_array("tokenizer.ggml.token_type", kinds[:n_tokens])
    return ()


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


# llama2.c.


def _write_llama2c(checkpoint: Checkpoint, path: Path, dtype: str, progress: Progress) -> tuple[str, ...]:
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
    total = 4 * sum(_count(shape) for _, shape in blocks)
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
            if (_folder(checkpoint) / name).is_file():
                files[name] = (_folder(checkpoint) / name).read_bytes()
    notes: tuple[str, ...] = ()
    for name, data in files.items():
        if (path.parent.parent / name).exists():
            notes += (f"{name} beside the target was kept; the model's own was not written",)
        else:
            (path.parent / name).write_bytes(data)
    return notes


def _require_plain_llama(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
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
        return _cast(np.cos(angles) if name == "rope.real" else np.sin(angles), np.dtype("<f4"))
    if name not in checkpoint.tensors:
        raise CheckpointError(f"{checkpoint.path} holds no {name}")
    array = checkpoint.tensors[name]
    want = shape[1:] if name.startswith("model.layers.") else shape
    if array.shape != want:
        raise CheckpointError(f"config calls for {name} of {want} but it is {array.shape}")
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        array = llama2c.to_pairs(array, config["head_dim"])
    return _cast(array, np.dtype("<f4"))


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
            "no vocabulary was written beside it: llama2.c's format holds SentencePiece pieces with "
            "scores, and the source has none. Keep its tokenizer.json beside the .bin",
        )
    if not (path.parent.parent / f"tok{n_tokens}.bin").exists():
        (path.parent / f"tok{n_tokens}.bin").write_bytes(llama2c.pack_vocabulary(pieces))
    return ()
