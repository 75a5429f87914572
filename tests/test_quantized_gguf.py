"""GGUF's block types as codes: every value equals what the gguf package makes of the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from pronghorn.errors import CheckpointError
from pronghorn.model.quantized.blocks import BLOCKS, decode
from pronghorn.ops.codes import Codes
from pronghorn.ops.panels import pack, unpack

# Where the float16 of a block lie.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "MXFP4": (),
}  # fmt: skip
WRITABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")


def random_blocks(kind: str, n_out: int, n_blocks: int, rng: np.random.Generator) -> np.ndarray:
    """Any bytes at all, but for scales that are not finite."""
    raw = rng.integers(0, 256, (n_out, n_blocks, BLOCKS[kind].n_bytes), dtype=np.uint8)
    for at in HALVES[kind]:
        scale = raw[..., at : at + 2]
        bits = np.ascontiguousarray(scale).view("<u2")
        bits = np.where((bits & 0x7C00) == 0x7C00, bits & 0xBFFF, bits).astype("<u2")
        scale[...] = bits.view(np.uint8)
    if kind == "MXFP4":
        raw[..., 0] = np.minimum(raw[..., 0], 250)  # past that, values leave float32
    return raw.reshape(n_out, -1)


def the_package(kind: str, raw: np.ndarray) -> np.ndarray:
    """Its values; a zero keeps no sign, since a codes' value ends in a sum."""
    values = quants.dequantize(raw, GGMLQuantizationType[kind])
    return values + np.float32(0)


def bits(a: np.ndarray) -> np.ndarray:
    assert a.dtype == np.float32
    return (a + np.float32(0)).view(np.uint32)


def test_sizes_of_blocks() -> None:
    for kind, block in BLOCKS.items():
        assert GGML_QUANT_SIZES[GGMLQuantizationType[kind]] == (block.n_values, block.n_bytes)
    assert set(HALVES) == set(BLOCKS)


@pytest.mark.parametrize("kind", BLOCKS)
def test_random_blocks_bit_for_bit(kind: str) -> None:
    @settings(max_examples=25, deadline=None)
    @given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 2**32))
    def check(n_out: int, n_blocks: int, seed: int) -> None:
        raw = random_blocks(kind, n_out, n_blocks, np.random.default_rng(seed))
        codes = decode(kind, raw, "t")
        np.testing.assert_array_equal(bits(codes.dense()), bits(the_package(kind, raw)))
        # What kernels read is the same still.
        np.testing.assert_array_equal(unpack(pack(codes)).dense(), codes.dense())

    check()


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_float16_scale(kind: str) -> None:
    """All 63,488 finite ones, subnormal and negative ones among them, in every place for a scale."""
    if kind == "MXFP4":
        raw = random_blocks(kind, 1, 251, np.random.default_rng(0)).reshape(251, 17)
        raw[:, 0] = np.arange(251)
    else:
        every = np.arange(65536, dtype="<u2")
        every = every[(every & 0x7C00) != 0x7C00]
        rng = np.random.default_rng(1)
        raw = random_blocks(kind, len(every), 1, rng)
        for i, at in enumerate(HALVES[kind]):
            raw[:, at : at + 2] = (rng.permutation(every) if i else every).view(np.uint8).reshape(-1, 2)
    codes = decode(kind, raw, "t")
    np.testing.assert_array_equal(bits(codes.dense()), bits(the_package(kind, raw)))


@pytest.mark.parametrize("kind", WRITABLE)
def test_what_the_package_quantizes(kind: str) -> None:
    values = np.random.default_rng(2).standard_normal((33, 320)).astype(np.float32)
    values[3] = 0
    raw = quants.quantize(values, GGMLQuantizationType[kind])
    codes = decode(kind, raw, "t")
    np.testing.assert_array_equal(bits(codes.dense()), bits(the_package(kind, raw)))
    assert np.abs(codes.dense() - values).max() < 1.1


def test_more_rows_than_are_taken_apart_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_blocks("Q6_K", 50, 2, np.random.default_rng(3))
    whole = decode("Q6_K", raw, "t")
    monkeypatch.setattr("pronghorn.model.quantized.blocks.CHUNK", 3 * raw.shape[1])
    np.testing.assert_array_equal(decode("Q6_K", raw, "t").code, whole.code)


def test_no_more_memory_than_a_byte_for_a_code() -> None:
    import tracemalloc

    raw = random_blocks("Q4_K", 1024, 16, np.random.default_rng(4))
    tracemalloc.start()
    codes: Codes = decode("Q4_K", raw, "t")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert codes.code.nbytes == 4 << 20
    assert peak < 1.5 * codes.code.nbytes


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("kind", "at"), [(k, a) for k, places in HALVES.items() for a in places])
def test_scales_that_are_no_numbers(kind: str, at: int, value: float) -> None:
    raw = random_blocks(kind, 4, 2, np.random.default_rng(5))
    start = BLOCKS[kind].n_bytes + at
    raw[2, start : start + 2] = np.array([value], "<f2").view(np.uint8)
    with pytest.raises(CheckpointError, match=r"'blk\.7'.*NaN or infinite"):
        decode(kind, raw, "blk.7")


def test_a_power_of_two_that_stands_for_nan() -> None:
    raw = random_blocks("MXFP4", 4, 2, np.random.default_rng(6))
    raw[1, 17] = 255
    with pytest.raises(CheckpointError, match="'t' holds scales that stand for NaN"):
        decode("MXFP4", raw, "t")
