"""What drivers share: prompts, and where a converted model is kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np


def tokens(n: int, n_vocab: int, seed: int) -> list[int]:
    """Token ids of no meaning, the same for every engine."""
    return [int(t) for t in np.random.default_rng(seed).integers(0, n_vocab - 8, n)]


def n_vocab(model: str) -> int:
    config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    return int(config["vocab_size"])


def made(path: Path, write: Callable[[Path], None]) -> Path:
    """`path`, a file or folder, written by `write` unless it is there; a write cut short leaves nothing."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name("part-" + path.name)
    if part.is_dir():
        shutil.rmtree(part)
    part.unlink(missing_ok=True)
    try:
        write(part)
        os.replace(part, path)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)
    return path
