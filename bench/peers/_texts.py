"""What drivers share: prompts, and where a converted model is kept."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def tokens(n: int, n_vocab: int, seed: int) -> list[int]:
    """Token ids of no meaning, the same for every engine."""
    import numpy as np  # not needed by drivers of programs, which run in any Python

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


class Watch:
    """The answers to prompts that run together, and the times that `pronghorn bench speculate` compares:
    seconds from the moment when every prompt has its first token, and the tokens that come after it."""

    def __init__(self, n: int) -> None:
        self.answers: list[list[int]] = [[] for _ in range(n)]
        self._begin = time.perf_counter()
        self._start = 0.0
        self._early = 0

    def got(self, i: int, ids: Iterable[int]) -> None:
        """Tokens of prompt `i` have come. `turn` follows."""
        self.answers[i] += [int(t) for t in ids]

    def turn(self) -> None:
        """What has come up to now came by now."""
        if not self._start and all(self.answers):
            self._start = time.perf_counter()
            self._early = sum(map(len, self.answers))

    def report(self) -> dict[str, Any]:
        """What a driver's `answer` gives."""
        end = time.perf_counter()
        count = sum(map(len, self.answers))
        return {
            "answers": self.answers, "tokens": count - (self._early or count),
            "seconds": end - (self._start or end), "whole": end - self._begin,
        }  # fmt: skip
