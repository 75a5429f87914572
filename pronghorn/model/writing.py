"""What the three writers share: casting, the way back to config.json, and all-or-nothing files."""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pronghorn.errors import CheckpointError, UnsupportedError
from pronghorn.model.checkpoint import Array, Checkpoint

Progress = Callable[[int, int], None]

FLOATS: dict[str, np.dtype[Any]] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
_GPT2_ALIASES = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name in a fresh folder beside `path`; renamed onto `path` if the body succeeds.

    Other files that the body leaves in that folder move along with it. Raises CheckpointError for
    a full disk and any other failure to write.
    """
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
                f"no room to write {path} ({free:,} bytes are free there); free some space or "
                "choose another folder. Nothing was left behind"
            ) from error
        raise CheckpointError(f"cannot write {path}: {error}") from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def cast(array: Array, dtype: np.dtype[Any]) -> Array:
    """`array` in `dtype`, contiguous. Raises UnsupportedError for weights past float16's range."""
    if array.dtype != dtype:
        with np.errstate(over="ignore"):
            result = array.astype(dtype)
        if dtype == np.float16 and np.isinf(result).any() and not np.isinf(array.astype("f4")).any():
            raise UnsupportedError("some weights are too large for f16; choose bf16 or f32")
        array = result
    return np.ascontiguousarray(array)


def count(shape: tuple[int, ...]) -> int:
    """Number of items of an array of `shape`, exactly."""
    return math.prod(shape)


def source_folder(checkpoint: Checkpoint) -> Path:
    """Where the checkpoint's tokenizer files would lie."""
    return checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent


def config_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config as transformers reads it: rope settings in both generations' spelling."""
    config = {key: value for key, value in checkpoint.config.items() if key != "num_local_experts"}
    if "num_experts" in config and config["model_type"] == "mixtral":
        config["num_local_experts"] = config.pop("num_experts")
    if config["model_type"] == "gpt2":
        # transformers knows these by GPT-2's own names.
        for alias in (*_GPT2_ALIASES, "layer_types", "head_dim", "num_key_value_heads"):
            config.pop(alias, None)
    config["eos_token_id"] = list(checkpoint.eos) if len(checkpoint.eos) != 1 else checkpoint.eos[0]
    config["bos_token_id"] = checkpoint.bos if checkpoint.bos >= 0 else None
    return config
