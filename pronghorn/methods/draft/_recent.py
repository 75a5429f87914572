"""Where the end of a text stood before in it, and what came after it there."""

from __future__ import annotations

from typing import Any

import numpy as np

from pronghorn.types import Ints

PAIR = 2  # tokens that are looked up; how far the match goes back is read from the text


def onward(tokens: list[int], at: int, length: int) -> list[int]:
    """What came after a place of a text. Where that runs into the text's end, the text repeats itself, and is
    taken to go on so."""
    out = tokens[at : at + length]
    while len(out) < length:
        out += out[: length - len(out)]
    return out


def follow(
    memory: dict[str, Any], tokens: list[int], longest: int, most: int, length: int
) -> tuple[int, Ints]:
    """The longest suffix of a text that stood in it before, `longest` tokens at most: its length (0: none of
    two), and (n, length) tokens that came after it, of the `most` latest places, the latest first. memory:
    the method's, of the sequence; it grows with the text."""
    ends: dict[tuple[int, ...], list[int]] = memory.setdefault("ends", {})
    n = len(tokens)
    for end in range(memory.get("done", PAIR - 1) + 1, n):
        ends.setdefault(tuple(tokens[end - PAIR : end]), []).append(end)
    memory["done"] = max(memory.get("done", PAIR - 1), n - 1)
    found: list[int] = []
    span = 0
    for end in reversed(ends.get(tuple(tokens[n - PAIR :]), [])[-most:]):
        size = PAIR
        while size < longest and size < end and tokens[end - size - 1] == tokens[n - size - 1]:
            size += 1
        if size > span:
            span, found = size, []
        if size == span:
            found.append(end)
    rows = np.full((len(found), length), -1, np.int32)
    for row, end in zip(rows, found, strict=True):
        row[:] = onward(tokens, end, length)
    return span, rows
