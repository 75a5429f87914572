"""From any readable checkpoint to GGUF, to a Hugging Face folder, or to llama2.c's .bin.

Everything is written beside the target under a temporary name and renamed at the end, so a full
disk or Ctrl-C leaves the target as it was. Tensors pass through one at a time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pronghorn.errors import CheckpointError, UnsupportedError
from pronghorn.model.checkpoint import load_checkpoint
from pronghorn.model.packed import FILE
from pronghorn.model.write_gguf import write_gguf
from pronghorn.model.write_hf import write_folder
from pronghorn.model.write_llama2c import write_llama2c
from pronghorn.model.writing import FLOATS, Progress, replacing, source_folder

DTYPES: tuple[str, ...] = (*FLOATS, "q8_0", "q4_0")


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

    `dtype` is one of `DTYPES`; quantized types go only into GGUF, and .bin is always f32.
    `progress` is called with (bytes written, bytes in all) after each tensor. Raises
    CheckpointError for a source that cannot be read or a disk that is full, UnsupportedError for a
    combination that cannot be written.
    """
    path = Path(target)
    if dtype not in DTYPES:
        raise UnsupportedError(f"cannot convert to {dtype!r}; choose one of {', '.join(DTYPES)}")
    checkpoint = load_checkpoint(source)
    if (source_folder(checkpoint) / FILE).exists():
        raise UnsupportedError(
            f"{checkpoint.path} is packed for Pronghorn's kernels, which loses precision for good: convert "
            "the model that it was made from"
        )
    kind = path.suffix if path.suffix in (".gguf", ".bin") else "folder"
    if kind == ".bin" and dtype != "f32":
        raise UnsupportedError(f"llama2.c files hold f32 only; choose f32 instead of {dtype}")
    if kind == "folder" and dtype not in FLOATS:
        raise UnsupportedError(f"{dtype} exists only in GGUF; end the target's name in .gguf")
    if path.is_dir() and (kind != "folder" or any(path.iterdir())):
        raise CheckpointError(f"{path} already exists and is a folder; name another target")
    if kind == "folder" and path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} already exists and is a file; name another target")
    with replacing(path) as temporary:
        if kind == ".gguf":
            notes = write_gguf(checkpoint, temporary, dtype, progress)
        elif kind == ".bin":
            notes = write_llama2c(checkpoint, temporary, progress)
        else:
            notes = write_folder(checkpoint, temporary, dtype, progress)
    return Converted(path, _size(path), notes)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else list(path.iterdir())
    return sum(file.stat().st_size for file in files)
