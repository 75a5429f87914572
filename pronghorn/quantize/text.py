"""Text to calibrate on or to evaluate on: a plain text file, or JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import RequestError
from pronghorn.model.tokenizer import Tokenizer

MOST = 256 << 20  # bytes read of a file
NONE = np.zeros((0, 0), np.int32)  # no text


def read(path: Path) -> list[str]:
    """The texts of a file: all of it, or the "text" of each line of a .jsonl file. Raises `RequestError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST + 1)
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from None
    if len(data) > MOST:
        raise RequestError(f"{path} is larger than {MOST >> 20} MiB: give a part of it")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 text (byte {error.start}): convert it") from None
    if path.suffix != ".jsonl":
        return [text]
    out = []
    for i, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise RequestError(f"{path}, line {i} is not JSON") from None
        found = value.get("text") if isinstance(value, dict) else value
        if not isinstance(found, str):
            raise RequestError(f'{path}, line {i} is neither a string nor an object with a "text"')
        out.append(found)
    return out


def sequences(texts: list[str], tokenizer: Tokenizer, n_tokens: int, length: int) -> NDArray[np.int32]:
    """(n, length) token ids, n * length at most `n_tokens` and at least one sequence, spread evenly over
    the texts. Raises `RequestError` for too little text."""
    ids = [token for text in texts for token in tokenizer.encode(text)]
    n_there = len(ids) // length
    if not n_there:
        raise RequestError(f"the text has {len(ids)} tokens; one sequence needs {length}: give more text")
    n = min(n_there, max(1, n_tokens // length))
    at = np.linspace(0, n_there - 1, n).astype(int)
    out: NDArray[np.int32] = np.asarray(ids[: n_there * length], np.int32).reshape(n_there, length)[at]
    return out
