"""Small integers out of the words that checkpoints pack them into."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pronghorn.model.quantized.stored import Array

Bytes = NDArray[np.uint8]


def stream(words: Array, bits: int) -> Bytes:
    """Codes of 2, 3, 4 or 8 bits that follow each other from the lowest bit of the first word on, across
    the bounds of words: int32 (.., n_words) -> uint8 (.., n_words * 32 // bits). The bits of a row must make
    whole codes, those of 3 bits whole bytes of eight codes."""
    data = np.ascontiguousarray(words, "<i4").view(np.uint8)
    if bits == 8:
        return data
    if bits == 3:
        return _threes(data)
    n = 8 // bits
    out = np.empty((*data.shape[:-1], data.shape[-1], n), np.uint8)
    for i in range(n):
        np.right_shift(data, np.uint8(i * bits), out=out[..., i])
    out &= np.uint8((1 << bits) - 1)
    return out.reshape(*data.shape[:-1], -1)


def _threes(data: Bytes) -> Bytes:
    a, b, c = (data[..., i::3] for i in range(3))
    out = np.empty((*a.shape, 8), np.uint8)
    out[..., 0] = a
    out[..., 1] = a >> 3
    out[..., 2] = a >> 6 | b << 2
    out[..., 3] = b >> 1
    out[..., 4] = b >> 4
    out[..., 5] = b >> 7 | c << 1
    out[..., 6] = c >> 2
    out[..., 7] = c >> 5
    out &= np.uint8(7)
    return out.reshape(*data.shape[:-1], -1)


def lanes(words: Array, bits: int, n: int) -> Bytes:
    """The first n codes of words of which each holds 32 // bits, from the lowest bits on; bits that are left
    over stay unused: int32 (.., n_words) -> uint8 (.., n)."""
    per = 32 // bits
    if per * bits == 32:
        return np.ascontiguousarray(stream(words, bits)[..., :n])
    unsigned = np.ascontiguousarray(words, "<i4").view("<u4")
    out = np.empty((*words.shape, per), np.uint8)
    for i in range(per):
        out[..., i] = unsigned >> np.uint32(i * bits) & np.uint32((1 << bits) - 1)
    return np.ascontiguousarray(out.reshape(*words.shape[:-1], -1)[..., :n])
