"""What every checkpoint format becomes, and the one function that opens any of them.

`load_checkpoint` reads headers only. Tensors are views of the mapped file, or are converted one at
a time when they are asked for, so a model larger than memory can still be inspected. A map follows
its file: truncating it while it is open kills the process, as with any mapped file.
"""

from __future__ import annotations

import mmap
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import CheckpointError
from pronghorn.model import names
from pronghorn.model.arch import require_architecture
from pronghorn.model.quantized.stored import NonFiniteError, Tensor, dense

Array = NDArray[Any]

SAMPLES = 1024  # pieces of a file that are looked at to tell it from others
RELEASE = 1 << 27  # bytes of tensors after which mapped pages go back: few calls, little memory


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the file stores it; known without reading its data."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as stored: "BF16", "F32", "Q4_0", "gptq int4"
    nbytes: int  # as stored, with scales and all
    small: bool = False  # stays that small when loaded: codes or fp8, no array of floats
    ready: bool = False  # lies in the file as kernels read it


@dataclass(frozen=True)
class Entry:
    """A tensor's description, and the function that makes it: of `info.shape`, whatever holds it."""

    info: TensorInfo
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class ArrayEntry(Entry):
    """One that makes an array, whatever it stands for."""

    read: Callable[[], Array]


class Tensors(Mapping[str, Any]):
    """Lazy tensors by canonical name. Each access reads afresh: nothing is kept alive here.

    A tensor is an array of floats; where the file holds small integers, a matrix is `ops.codes.Codes`, or
    `quantized.stored.Turned` where arrays would be (n_in, n_out); fp8 is a `types.Packed` "float8".
    """

    def __init__(self, entries: Mapping[str, Entry], files: Sequence[Array] = ()) -> None:
        """files: the bytes of each mapped file."""
        self._entries = dict(entries)
        self._files = files
        self._n_done = 0

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> Tensors:
        """Arrays that lie in memory."""

        def entry(name: str, a: Array) -> Entry:
            return Entry(TensorInfo(name, a.shape, a.dtype.name, a.nbytes), lambda: a)

        return cls({name: entry(name, a) for name, a in arrays.items()})

    def __getitem__(self, name: str) -> Any:
        return self._entries[name].read()

    def dense(self, name: str) -> Array:
        """The values of one tensor, float32 for those stored as small integers."""
        return dense(self._entries[name].read())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def info(self, name: str) -> TensorInfo:
        """Name, shape, stored dtype and stored bytes, without reading the data."""
        return self._entries[name].info

    def samples(self) -> Iterator[bytes]:
        """Bytes from all over what the tensors hold: they differ where two checkpoints do."""
        for data in self._files or [self._flat(name) for name in sorted(self)]:
            step = max(1, len(data) // SAMPLES)
            for at in range(0, len(data), step):
                yield data[at : at + 64].tobytes()

    def _flat(self, name: str) -> Array:
        return np.ascontiguousarray(self.dense(name)).reshape(-1).view(np.uint8)

    @property
    def _ready(self) -> bool:
        """Whether most of the files is read where it lies."""
        infos = [entry.info for entry in self._entries.values()]
        return 2 * sum(i.nbytes for i in infos if i.ready) > sum(i.nbytes for i in infos)

    def fetch(self) -> None:
        """Begin to map the pages of files that are read where they lie, on threads of their own: a core that
        idles while the rest is loaded does it for the first step."""
        for data in self._files if self._ready else ():
            threading.Thread(target=data[:: mmap.PAGESIZE].max, daemon=True).start()

    def done(self, nbytes: int) -> None:
        """So much is not needed again: mapped pages go back now and then, or all of them would lie in memory
        beside what is made of them."""
        self._n_done += nbytes
        if self._n_done > RELEASE:
            self.release()
            self._n_done = 0

    def release(self) -> None:
        """Give mapped pages back to the system, once a runner has packed what it reads, unless it reads most
        of them where they lie. They are read again from the files if anybody asks."""
        if self._ready:
            return
        for data in self._files:
            mapped: Any = data.base
            mapped = mapped.obj if isinstance(mapped, memoryview) else mapped
            if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Checkpoint:
    """A readable checkpoint: config and tensors in Hugging Face's vocabulary (see `names`).

    `config` is a flat config.json; `tensors` map canonical names to arrays of float32, float16,
    ml_dtypes.bfloat16, or to matrices of small integers as stored (see `Tensors`); `eos` are the ids
    that end a text; `bos` is -1 when absent; `gguf_metadata` holds the tokenizer.* keys of a GGUF file
    and is empty otherwise.
    """

    path: Path
    kind: str  # "hf" | "gguf" | "llama2c"
    config: dict[str, Any]
    tensors: Tensors
    eos: tuple[int, ...]
    bos: int
    gguf_metadata: dict[str, Any] = field(default_factory=dict)

    def tensor_info(self) -> list[TensorInfo]:
        """Every tensor as stored, in the order of the file."""
        return [self.tensors.info(name) for name in self.tensors]


def load_checkpoint(source: str | os.PathLike[str]) -> Checkpoint:
    """Open a folder, a .gguf, .bin or .safetensors file, or a hub name such as "org/name".

    Raises CheckpointError for anything missing, damaged or contradictory, and UnsupportedError for
    an architecture, tensor type or format that Pronghorn does not read. No tensor data is read.
    """
    path = locate(source)
    if path.is_dir():
        from pronghorn.model.hf import load_folder

        checkpoint = load_folder(path)
    elif path.suffix == ".safetensors":
        from pronghorn.model.hf import load_folder

        checkpoint = load_folder(path.parent, only=path.name)
    elif path.suffix == ".gguf":
        from pronghorn.model.gguf import load_gguf

        checkpoint = load_gguf(path)
    elif path.suffix == ".bin":
        from pronghorn.model.llama2c import load_llama2c

        checkpoint = load_llama2c(path)
    else:
        raise CheckpointError(
            f"{path} is not a checkpoint that Pronghorn reads; give a folder with config.json and "
            ".safetensors files, a .gguf file, or a llama2.c .bin file"
        )
    return checkpoint


def locate(source: str | os.PathLike[str]) -> Path:
    """The file or folder that `source` means, downloading it when it is a hub name.

    A folder that holds no config.json but exactly one .gguf file means that file.
    """
    path = Path(source)
    try:
        os.stat(path)
        found = True
    except (FileNotFoundError, NotADirectoryError):
        found = False
    except (OSError, ValueError) as error:  # not allowed, a name too long, a NUL byte
        raise CheckpointError(f"{names.shown(str(source))} is not a usable path: {error}") from error
    if not found:
        from pronghorn.model.hub import download, is_name

        if not is_name(os.fspath(source)):
            raise CheckpointError(
                f"{path} does not exist; give a folder, a .gguf or .bin file, or a hub name like org/name"
            )
        path = download(os.fspath(source))
    if path.is_dir() and not (path / "config.json").exists():
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return files[0]
        if files:
            listed = ", ".join(f.name for f in files[:4])
            raise CheckpointError(f"{path} holds {len(files)} GGUF files ({listed}); name one of them")
    return path


def finish(
    path: Path,
    kind: str,
    raw_config: Mapping[str, Any],
    entries: Mapping[str, Entry],
    eos: tuple[int, ...],
    bos: int,
    files: Sequence[Array],
    gguf_metadata: dict[str, Any] | None = None,
) -> Checkpoint:
    """Last step of every reader: normalise the config, check it against the number of tensors.

    The file's own size bounds every count: a config may not name more layers or experts than there
    are tensors, so nothing downstream loops or allocates on a number that the file made up.
    """
    config = names.normalise_config(raw_config, str(path))
    require_architecture(config["model_type"])
    for key in ("num_hidden_layers", "n_layer", "num_experts"):
        value = config.get(key)
        if value is not None and value > len(entries):
            raise CheckpointError(
                f"{path}: config says {key} {value} but the checkpoint holds {len(entries)} tensors"
            )
    names.fill_layers(config)
    return Checkpoint(path, kind, config, Tensors(entries, files), eos, bos, gguf_metadata or {})


def map_file(path: Path) -> Array:
    """The file's bytes as a read-only uint8 array backed by a map.

    Raises CheckpointError when it is missing, empty, unreadable or not a regular file (reading a
    pipe or a device could block for ever).
    """
    try:
        with open(path, "rb", opener=_open_without_blocking) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path} is not a regular file")
            if status.st_size == 0:
                raise CheckpointError(f"{path} is empty; the download or copy did not finish")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    return np.frombuffer(data, dtype=np.uint8)


def _open_without_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def view(data: Array, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """`shape` items of `dtype` at byte `start` of `data`; a copy only when they are misaligned.

    The caller has checked that they lie within `data`.
    """
    count = 1
    for dim in shape:
        count *= dim
    stop = start + count * dtype.itemsize
    part = data[start:stop]
    if part.ctypes.data % dtype.itemsize:
        part = part.copy()
    return part.view(dtype).reshape(shape)


_WHOLE = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
_PATH = ("model.layers.", "model.norm.", "transformer.h.", "transformer.ln_f.", "lm_head.")


def validate(checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless the checkpoint holds the expected tensors and leaves none unused.

    A tensor of the path from embedding to logits that nothing expects would be dropped silently and the
    output be wrong: a bias that the config does not call for, a layer past the last one. Harmless
    leftovers never come here: readers drop them (`names.canonical`); but biases of nothing but zeros, which
    early GPTQ checkpoints have for each layer, may be unused. With tied embeddings lm_head.weight may be
    missing, and may be left unused. The message lists the first few faults and the config fields behind
    them.
    """
    faults: list[str] = []
    tied = checkpoint.config["tie_word_embeddings"]
    for name, want in expected.items():
        if name not in checkpoint.tensors:
            if not (name == "lm_head.weight" and tied):
                faults.append(f"{name} is missing, expected {tuple(want)}")
            continue
        info = checkpoint.tensors.info(name)
        have = info.shape
        if info.dtype in _WHOLE:
            faults.append(f"{name} holds whole numbers ({info.dtype}), perhaps quantized weights")
        elif have != tuple(want):
            faults.append(_disagreement(checkpoint.config, name, have, tuple(want)))
    faults += [
        f"{name} is stored, but the config does not call for it"
        for name in checkpoint.tensors
        if name not in expected
        and name.startswith(_PATH)
        and not (name == "lm_head.weight" and tied)
        and not _adds_nothing(checkpoint.tensors, name)
    ]
    if faults:
        rest = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise CheckpointError(
            f"{checkpoint.path}: config and tensors disagree: {'; '.join(faults[:4])}{rest}. "
            "Use the config.json that belongs to these weights"
        )


def _adds_nothing(tensors: Tensors, name: str) -> bool:
    layer, _, last = name.rpartition(".")
    weight = f"{layer}.weight"
    if last != "bias" or weight not in tensors or not tensors.info(weight).dtype.startswith("gptq"):
        return False
    return len(tensors.info(name).shape) == 1 and not tensors.dense(name).any()


def _disagreement(config: Mapping[str, Any], name: str, have: tuple[int, ...], want: tuple[int, ...]) -> str:
    keys = ("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "head_dim")
    wrong = [w for h, w in zip(have, want, strict=False) if h != w]
    said = [f"{key} {config[key]}" for key in keys if config.get(key) in wrong]
    return f"config says {' and '.join(said) or tuple(want)} but {name} is {have}"


def find_nonfinite(
    checkpoint: Checkpoint, progress: Callable[[int, int], None] | None = None
) -> tuple[str, ...]:
    """Names of tensors that hold a NaN or an infinity, scanned in chunks of a few megabytes.

    `progress(done, total)` counts stored bytes.
    """
    infos = checkpoint.tensor_info()
    total = sum(info.nbytes for info in infos)
    done = 0
    bad: list[str] = []
    for info in infos:
        try:
            tensor = checkpoint.tensors[info.name]
            finite = not isinstance(tensor, np.ndarray) or _all_finite(tensor)
        except NonFiniteError:
            finite = False
        if not finite:
            bad.append(info.name)
        done += info.nbytes
        if progress is not None:
            progress(done, total)
    return tuple(bad)


def _all_finite(array: Array, chunk: int = 1 << 20) -> bool:
    flat = array.T.reshape(-1) if array.flags.f_contiguous else array.reshape(-1)
    with np.errstate(all="ignore"):
        return all(
            bool(np.isfinite(flat[start : start + chunk].astype(np.float32)).all())
            for start in range(0, flat.size, chunk)
        )
