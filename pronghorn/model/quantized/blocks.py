"""The block types of GGUF, bit for bit (ggml's block_q4_0 and its kin in ggml-common.h).

A row is a run of blocks of 32 or 256 values, each a record of scales and codes. `decode` takes the records
apart and leaves the numbers as they are: no scale is multiplied, no value rounded. The types fall in three
families:

    Q4_0 to Q8_0, IQ4_NL    a float16 scale for 32 values; the _1 types add a float16 offset
    Q2_K to Q6_K, IQ4_XS    a float16 for 256 values times an integer for 16 or 32; Q2_K, Q4_K, Q5_K have
                            offsets of the same kind
    MXFP4                   a power of two for 32 values: a bfloat16 holds each of them
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import CheckpointError
from pronghorn.model.quantized.stored import Array, require_finite, side_by_side
from pronghorn.ops.codes import NONE, Codes, Grid

Bytes = NDArray[np.uint8]
Factors = tuple[Array, Array, Array, Array]  # scale, offset, over, under

CHUNK = 1 << 20  # bytes of blocks taken apart at a time: what numpy makes on the way stays in the cache

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # doubled; the scale is half


@dataclass(frozen=True)
class Block:
    """A type's values and bytes in one block, its grid, and how to take blocks (.., n_bytes) apart.

    code: fills uint8 (.., n_values); factors: gives scales and the rest, (.., groups in a block).
    """

    n_values: int
    n_bytes: int
    grid: Grid
    code: Callable[[Bytes, Bytes], None]
    factors: Callable[[Bytes], Factors]


def decode(kind: str, raw: Bytes, name: str) -> Codes:
    """Rows of blocks (n_out, bytes of a row), uint8, as codes. `name` is for errors.

    Raises CheckpointError where a scale is NaN or infinite.
    """
    block = BLOCKS[kind]
    n_out = len(raw)
    blocks = raw.reshape(n_out, -1, block.n_bytes)
    code = np.empty((n_out, blocks.shape[1], block.n_values), np.uint8)
    step = max(1, CHUNK // raw.shape[1])

    def some(i: int) -> None:
        block.code(blocks[i : i + step], code[i : i + step])

    side_by_side(some, range(0, n_out, step))
    factors = [np.ascontiguousarray(a).reshape(n_out, -1) if a.size else a for a in block.factors(blocks)]
    require_finite(name, *factors)
    if kind == "MXFP4" and (blocks[..., 0] == 255).any():
        raise CheckpointError(f"tensor {name!r} holds scales that stand for NaN: the checkpoint is damaged")
    return Codes(block.grid, code.reshape(n_out, -1), *factors)


def _half(blocks: Bytes, at: int) -> Array:
    """The float16 at byte `at` of each block, (.., 1)."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2")


def _split(packed: Bytes, bits: int, run: int, out: Bytes) -> None:
    """Runs of `run` bytes, each byte holding 8 // bits codes: the lowest bits of a run come first, then the
    next ones. Fills out (.., n * 8 // bits)."""
    n = 8 // bits
    runs = packed.reshape(*packed.shape[:-1], -1, run)
    parts = out.reshape(*packed.shape[:-1], -1, n, run)
    mask = np.uint8((1 << bits) - 1)
    for i in range(n):
        part = parts[..., i, :]
        np.right_shift(runs, np.uint8(i * bits), out=part)
        if i + 1 < n:
            part &= mask


def _plain(bits: int, at: int) -> Callable[[Bytes, Bytes], None]:
    """Blocks of 32: codes of 4 bits from byte `at`, and the fifth bits in the 4 bytes before."""

    def code(blocks: Bytes, out: Bytes) -> None:
        _split(blocks[..., at:], 4, 16, out)
        if bits == 5:
            high = np.unpackbits(blocks[..., at - 4 : at], axis=-1, bitorder="little")
            out |= high << np.uint8(4)

    return code


def _scaled(offset: bool) -> Callable[[Bytes], Factors]:
    def factors(blocks: Bytes) -> Factors:
        return _half(blocks, 0), _half(blocks, 2) if offset else NONE, NONE, NONE

    return factors


def _q8_0(blocks: Bytes, out: Bytes) -> None:
    np.bitwise_xor(blocks[..., 2:], np.uint8(128), out=out)  # from two's complement to c - 128


def _q2_k(blocks: Bytes, out: Bytes) -> None:
    _split(blocks[..., 16:80], 2, 32, out)


def _q2_k_factors(blocks: Bytes) -> Factors:
    both = blocks[..., :16]
    return (both & np.uint8(15)).view(np.int8), both >> np.uint8(4), _half(blocks, 80), _half(blocks, 82)


def _q3_k(blocks: Bytes, out: Bytes) -> None:
    """A high bit that is set means that 4 is not subtracted: the third bit of c - 4."""
    _split(blocks[..., 32:96], 2, 32, out)
    high = np.empty_like(out)
    _split(blocks[..., :32], 1, 32, high)
    out |= high << np.uint8(2)


def _q3_k_factors(blocks: Bytes) -> Factors:
    """6-bit scales, 32 above their value: 16 nibbles in 8 bytes, then 16 pairs of bits in 4."""
    low, high = np.empty((2, *blocks.shape[:-1], 16), np.uint8)
    _split(blocks[..., 96:104], 4, 8, low)
    _split(blocks[..., 104:108], 2, 4, high)
    scale = (low | high << np.uint8(4)).view(np.int8) - np.int8(32)
    return scale, NONE, _half(blocks, 108), NONE


def _q4_k(blocks: Bytes, out: Bytes) -> None:
    _split(blocks[..., 16:], 4, 32, out)


def _q5_k(blocks: Bytes, out: Bytes) -> None:
    _split(blocks[..., 48:], 4, 32, out)
    high = np.empty_like(out)
    _split(blocks[..., 16:48], 1, 32, high)
    out |= high << np.uint8(4)


def _q45_k_factors(blocks: Bytes) -> Factors:
    """8 scales and 8 offsets of 6 bits in 12 bytes: the first four of each whole, in the low bits of 8
    bytes; of the others the low four bits in the last 4 bytes, the high two above the first."""
    first, second, last = (blocks[..., i : i + 4] for i in (4, 8, 12))

    def six(whole: Bytes, low: Bytes) -> Bytes:
        return np.concatenate([whole & np.uint8(63), low | (whole >> np.uint8(2) & np.uint8(48))], axis=-1)

    scale, offset = six(first, last & np.uint8(15)), six(second, last >> np.uint8(4))
    return scale.view(np.int8), offset, _half(blocks, 0), _half(blocks, 2)


def _q6_k(blocks: Bytes, out: Bytes) -> None:
    _split(blocks[..., :128], 4, 64, out)
    high = np.empty_like(out)
    _split(blocks[..., 128:192], 2, 32, high)
    out |= high << np.uint8(4)


def _q6_k_factors(blocks: Bytes) -> Factors:
    return blocks[..., 192:208].view(np.int8), NONE, _half(blocks, 208), NONE


def _iq4_xs(blocks: Bytes, out: Bytes) -> None:
    _split(blocks[..., 8:], 4, 16, out)


def _iq4_xs_factors(blocks: Bytes) -> Factors:
    """6-bit scales, 32 above their value: pairs of high bits in 2 bytes, then nibbles in 4."""
    low, high = np.empty((2, *blocks.shape[:-1], 8), np.uint8)
    _split(blocks[..., 4:8], 4, 1, low)
    _split(blocks[..., 2:4], 2, 1, high)
    scale = (low | high << np.uint8(4)).view(np.int8) - np.int8(32)
    return scale, NONE, _half(blocks, 0), NONE


def _mxfp4_factors(blocks: Bytes) -> Factors:
    """2**(e - 128); below e = 2 that is a subnormal number of bfloat16."""
    e = blocks[..., :1].astype(np.uint16)
    bits = np.where(e < 2, np.uint16(0x20) << np.minimum(e, 2), (np.maximum(e, 1) - 1) << 7)
    return bits.astype("<u2").view(ml_dtypes.bfloat16), NONE, NONE, NONE


def _two(bits: int, group: int, offset: bool) -> Grid:
    return Grid(bits, group, not offset, (), "two", "two" if offset else "")


BLOCKS: dict[str, Block] = {
    "Q4_0": Block(32, 18, Grid(4, 32), _plain(4, 2), _scaled(False)),
    "Q4_1": Block(32, 20, Grid(4, 32, False, offset="value"), _plain(4, 4), _scaled(True)),
    "Q5_0": Block(32, 22, Grid(5, 32), _plain(5, 6), _scaled(False)),
    "Q5_1": Block(32, 24, Grid(5, 32, False, offset="value"), _plain(5, 8), _scaled(True)),
    "Q8_0": Block(32, 34, Grid(8, 32), _q8_0, _scaled(False)),
    "Q2_K": Block(256, 84, _two(2, 16, True), _q2_k, _q2_k_factors),
    "Q3_K": Block(256, 110, _two(3, 16, False), _q3_k, _q3_k_factors),
    "Q4_K": Block(256, 144, _two(4, 32, True), _q4_k, _q45_k_factors),
    "Q5_K": Block(256, 176, _two(5, 32, True), _q5_k, _q45_k_factors),
    "Q6_K": Block(256, 210, _two(6, 16, False), _q6_k, _q6_k_factors),
    "IQ4_NL": Block(32, 18, Grid(4, 32, table=_IQ4), _plain(4, 2), _scaled(False)),
    "IQ4_XS": Block(256, 136, Grid(4, 32, table=_IQ4, scale="two"), _iq4_xs, _iq4_xs_factors),
    "MXFP4": Block(32, 17, Grid(4, 32, table=_E2M1, scale="bfloat16"), _plain(4, 1), _mxfp4_factors),
}
