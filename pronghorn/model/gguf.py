"""GGUF files, version 2 and 3, little-endian.

The container is parsed here rather than by the gguf package, whose reader trusts every count in the
file. Here each count is bounded by the bytes that remain before anything loops or allocates.
Quantized matrices come as codes (`quantized.blocks`), made one at a time when they are asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pronghorn.errors import CheckpointError, UnsupportedError
from pronghorn.model import gguf_map, names
from pronghorn.model.checkpoint import Array, Checkpoint, Entry, TensorInfo, finish, map_file, view
from pronghorn.model.hf import token_ids
from pronghorn.model.llama2c import to_halves
from pronghorn.model.quantized.blocks import BLOCKS, decode
from pronghorn.model.quantized.stored import Tensor, Turned, dense

MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 20
MAX_ITEMS = 1 << 22  # of one metadata array: a vocabulary has a few hundred thousand
MAX_STRING = 1 << 26

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}

# Tensor types that can be read, by number.
_TYPES: dict[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    20: "IQ4_NL",
    23: "IQ4_XS",
    28: "F64",
    30: "BF16",
    39: "MXFP4",
}
_PLAIN: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "F64": np.dtype("<f8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_TABLES = ("transformer.wpe.weight",)  # no matrix of a product: its rows are added as they are


@dataclass(frozen=True)
class Stored:
    """A tensor of the file: numpy's order of dimensions (rows first), and where its bytes lie."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    nbytes: int


@dataclass(frozen=True)
class Contents:
    """A parsed file: its bytes, metadata, and tensors in file order."""

    data: Array
    metadata: dict[str, Any]
    tensors: tuple[Stored, ...]


def load_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file as a Hugging Face checkpoint. Reads no tensor data but rope's small factors.

    Raises CheckpointError for a damaged file, UnsupportedError for an architecture, tensor type or
    version that Pronghorn does not read.
    """
    contents = parse(path)
    meta = contents.metadata
    if meta.get("split.count", 1) not in (0, 1):
        raise UnsupportedError(
            f"{path} is one part of a split GGUF; join the parts with `llama-gguf-split --merge`"
        )
    arch = gguf_map.require_arch(meta.get("general.architecture"))
    shapes = {stored.name: stored.shape for stored in contents.tensors}
    try:
        config = gguf_map.config_from(meta, arch, shapes, _rope_factors(contents))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    vocabulary = {key: value for key, value in meta.items() if key.startswith("tokenizer.")}
    config = names.normalise_config(config, str(path))
    entries = _entries(contents, arch, config)
    return finish(path, "gguf", config, entries, _eos(meta, config), _bos(meta), (contents.data,), vocabulary)


def _eos(meta: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, ...]:
    if own := token_ids(config.get("eos_token_id")):
        return own
    found = [token_ids(meta.get(f"tokenizer.ggml.{key}_token_id")) for key in ("eos", "eot", "eom")]
    return tuple(dict.fromkeys(i for ids in found for i in ids))


def _bos(meta: Mapping[str, Any]) -> int:
    ids = token_ids(meta.get("tokenizer.ggml.bos_token_id"))
    return ids[0] if ids else -1


def _rope_factors(contents: Contents) -> dict[str, list[float]]:
    out: dict[str, list[float]] = {}
    for stored in contents.tensors:
        if stored.name in gguf_map.ROPE_TENSORS:
            if len(stored.shape) != 1 or stored.shape[0] > 4096 or stored.dtype != "F32":
                raise CheckpointError(f"{stored.name} has shape {stored.shape} in {stored.dtype}")
            factors = view(contents.data, stored.start, stored.shape, _PLAIN["F32"])
            out[stored.name] = [float(v) for v in factors]
    return out


def _entries(contents: Contents, arch: str, config: Mapping[str, Any]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    model_type = config["model_type"]
    for stored in contents.tensors:
        place = gguf_map.from_gguf(stored.name, arch)
        if place is None:
            continue
        for part, entry in _parts(contents.data, stored, place, model_type, config):
            if part in entries:
                raise CheckpointError(f"GGUF tensor {names.shown(stored.name)} gives {part} again")
            entries[part] = entry
        names.check_count(len(entries))
    return entries


def _parts(
    data: Array,
    stored: Stored,
    place: gguf_map.Place,
    model_type: str,
    config: Mapping[str, Any],
) -> list[tuple[str, Entry]]:
    """Canonical tensors inside one stored tensor: one, or one for each stacked expert."""
    if not place.part:
        shape = stored.shape
        head = 0
        if place.change == "pairs":
            head = config["head_dim"]
            if shape[0] % head or head % 2:
                raise CheckpointError(
                    f"config says head_dim {head} but {stored.name} is {shape}; heads do not fit"
                )
        if place.change == "transpose":
            shape = shape[::-1]
        here = replace(stored, name=place.name)
        info = TensorInfo(place.name, shape, stored.dtype, stored.nbytes, _is_codes(here))
        return [(place.name, Entry(info, _reader(data, here, place.change, head)))]
    if place.expert >= 0:
        each = names.expert_name(place.name, model_type, place.expert, place.part)
        here = replace(stored, name=each)
        info = TensorInfo(each, stored.shape, stored.dtype, stored.nbytes, _is_codes(here))
        return [(each, Entry(info, _reader(data, here, "", 0)))]
    if len(stored.shape) != 3 or stored.shape[0] != config.get("num_experts"):
        raise CheckpointError(
            f"config says num_experts {config.get('num_experts')} but {stored.name} is {stored.shape}"
        )
    n_experts, rows, cols = stored.shape
    names.check_count(n_experts)
    nbytes = stored.nbytes // n_experts
    out = []
    for expert in range(n_experts):
        each = names.expert_name(place.name, model_type, expert, place.part)
        piece = Stored(each, (rows, cols), stored.dtype, stored.start + expert * nbytes, nbytes)
        info = TensorInfo(each, (rows, cols), stored.dtype, nbytes, _is_codes(piece))
        out.append((each, Entry(info, _reader(data, piece, "", 0))))
    return out


def _reader(data: Array, stored: Stored, change: str, head: int) -> Callable[[], Tensor]:
    """Reads a tensor that already has its canonical name, and undoes what llama.cpp did to it."""
    if _is_codes(stored):
        return lambda: _codes(data, stored, change, head)
    if change == "pairs":
        return lambda: to_halves(read_tensor(data, stored), head)
    if change == "plus_one":
        return lambda: read_tensor(data, stored) - np.float32(1)
    if change == "transpose":
        return lambda: read_tensor(data, stored).T
    return lambda: read_tensor(data, stored)


def _is_codes(stored: Stored) -> bool:
    """Whether a tensor, by its canonical name, is a matrix of a product in blocks of small integers."""
    return stored.dtype not in _PLAIN and len(stored.shape) == 2 and stored.name not in _TABLES


def _codes(data: Array, stored: Stored, change: str, head: int) -> Tensor:
    codes = decode(stored.dtype, _rows(data, stored), stored.name)
    if change == "pairs":
        return codes[to_halves(np.arange(stored.shape[0]), head)]
    if change == "transpose":
        return Turned(codes)
    return codes


def _rows(data: Array, stored: Stored) -> Array:
    """The bytes of a tensor of blocks, one row for each of its rows."""
    block = BLOCKS[stored.dtype]
    width = stored.shape[-1] // block.n_values * block.n_bytes
    return data[stored.start : stored.start + stored.nbytes].reshape(-1, width)


def read_tensor(data: Array, stored: Stored) -> Array:
    """The tensor's values: a view for F32, F16, BF16 and F64, float32 for quantized types.

    Raises CheckpointError for a quantized tensor with scales that are NaN or infinite.
    """
    if stored.dtype in _PLAIN:
        return view(data, stored.start, stored.shape, _PLAIN[stored.dtype])
    return dense(decode(stored.dtype, _rows(data, stored), stored.name)).reshape(stored.shape)


def parse(path: Path) -> Contents:
    """Header, metadata and tensor table of a GGUF file, every number checked against its size."""
    data = map_file(path)
    cursor = _Cursor(data, path)
    if cursor.take(4) != b"GGUF":
        raise CheckpointError(f"{path} is not a GGUF file (it does not begin with GGUF)")
    version = cursor.scalar("I")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = "big-endian" if swapped in (2, 3) else f"version {version}"
        raise UnsupportedError(f"{path} is {what} GGUF; Pronghorn reads little-endian versions 2 and 3")
    n_tensors, n_keys = cursor.scalar("Q"), cursor.scalar("Q")
    # The least entry: an empty name, a type and a byte; an empty name, no dimensions, type, offset.
    if n_keys > min(MAX_KEYS, cursor.left // 13) or n_tensors > min(MAX_TENSORS, cursor.left // 24):
        raise CheckpointError(
            f"{path} claims {n_keys} settings and {n_tensors} tensors, more than its size allows; "
            "it is truncated or damaged"
        )
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):
        key = cursor.name()
        if key in metadata:
            raise CheckpointError(f"{path}: key {names.shown(key)} appears twice")
        metadata[key] = cursor.value(cursor.scalar("I"))
    table = [cursor.tensor() for _ in range(n_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise CheckpointError(f"{path}: alignment {names.shown(alignment)} is not a power of two")
    base = -(-cursor.at // alignment) * alignment
    return Contents(data, metadata, _placed(path, table, base, int(data.size), alignment))


def _placed(
    path: Path,
    table: list[tuple[str, tuple[int, ...], int, int]],
    base: int,
    size: int,
    alignment: int,
) -> tuple[Stored, ...]:
    """Tensors with absolute positions: inside the file, aligned, named once, not overlapping."""
    out: dict[str, Stored] = {}
    for name, shape, code, offset in table:
        what = f"{path}: tensor {names.shown(name)}"
        if code not in _TYPES:
            readable = ", ".join(_TYPES.values())
            raise UnsupportedError(
                f"{what} has type {_type_name(code)}, which Pronghorn does not read; it reads {readable}"
            )
        kind = _TYPES[code]
        per_block, block_bytes = (
            (1, _PLAIN[kind].itemsize) if kind in _PLAIN else (BLOCKS[kind].n_values, BLOCKS[kind].n_bytes)
        )
        if shape[-1] % per_block:
            raise CheckpointError(f"{what} of shape {shape} does not divide into {kind} blocks")
        count = 1
        for dim in shape:
            count *= dim
        nbytes = count // per_block * block_bytes
        start = base + offset
        if offset % alignment or start + nbytes > size:
            raise CheckpointError(
                f"{what} lies at bytes {start} to {start + nbytes} of a file of {size}; "
                "it is truncated or damaged"
            )
        if name in out:
            raise CheckpointError(f"{what} appears twice")
        out[name] = Stored(name, shape, kind, start, nbytes)
    at = 0
    for stored in sorted(out.values(), key=lambda s: s.start):
        if stored.start < at:
            raise CheckpointError(f"{path}: tensor {names.shown(stored.name)} overlaps another")
        at = stored.start + stored.nbytes
    return tuple(out.values())


def _type_name(code: int) -> str:
    from gguf import GGMLQuantizationType

    try:
        return GGMLQuantizationType(code).name
    except ValueError:
        return str(code)


class _Cursor:
    """Reads forward through the file and never past its end."""

    def __init__(self, data: Array, path: Path) -> None:
        self._data = memoryview(data.data)
        self._path = path
        self.at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self.at

    def take(self, n: int) -> bytes:
        if n > self.left:
            raise CheckpointError(
                f"{self._path} ends at byte {len(self._data)}, inside its header; it is truncated or damaged"
            )
        out = bytes(self._data[self.at : self.at + n])
        self.at += n
        return out

    def scalar(self, code: str) -> Any:
        layout = "<" + code
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def string(self) -> str:
        n = self.scalar("Q")
        if n > MAX_STRING:
            raise CheckpointError(f"{self._path}: a string claims {n} bytes; it is damaged")
        return self.take(n).decode("utf-8", errors="replace")

    def strings(self, count: int) -> list[str]:
        """As `string`, but in one loop: a vocabulary has hundreds of thousands."""
        data, at, length, out = self._data, self.at, struct.Struct("<Q").unpack_from, []
        for _ in range(count):
            start = at + 8
            at = start + (length(data, at)[0] if start <= len(data) else 0)
            if at > len(data) or at - start > MAX_STRING:
                self.at = start - 8
                self.string()  # says what is wrong
            out.append(str(data[start:at], "utf-8", "replace"))
        self.at = at
        return out

    def name(self) -> str:
        text = self.string()
        if not text or len(text) > 65535:
            raise CheckpointError(f"{self._path}: a name of {len(text)} characters; it is damaged")
        return text

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise CheckpointError(f"{self._path}: metadata of unknown type {kind}; it is damaged")
        inner, count = self.scalar("I"), self.scalar("Q")
        least = 8 if inner == _STRING else struct.calcsize("<" + _SCALARS.get(inner, "B"))
        if inner != _STRING and inner not in _SCALARS:
            raise CheckpointError(f"{self._path}: metadata array of type {inner} is not supported")
        if count > min(MAX_ITEMS, self.left // least):
            raise CheckpointError(f"{self._path}: a metadata array claims {count} items; it is damaged")
        if inner == _STRING:
            return self.strings(count)
        return list(struct.unpack(f"<{count}{_SCALARS[inner]}", self.take(count * least)))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape with rows first, type number, offset)."""
        name = self.name()
        n_dims = self.scalar("I")
        if not 1 <= n_dims <= 4:
            raise CheckpointError(f"{self._path}: tensor {names.shown(name)} has {n_dims} dimensions")
        dims = tuple(self.scalar("Q") for _ in range(n_dims))
        if any(not 1 <= dim <= 2**40 for dim in dims):
            raise CheckpointError(f"{self._path}: tensor {names.shown(name)} has shape {dims[::-1]}")
        return name, dims[::-1], self.scalar("I"), self.scalar("Q")
