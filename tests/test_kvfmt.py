"""What KV formats are for: the errors that each scheme avoids, on rows made to show them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pronghorn.compose import parse, resolve
from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE
from pronghorn.methods.kvfmt.int4 import Int4
from pronghorn.methods.kvfmt.kivi import Kivi
from pronghorn.methods.kvfmt.turbo import Turbo
from pronghorn.methods.kvfmt.zipcache import ZipCache
from pronghorn.ops.ref import Ops

OPS = Ops("float32")
DIM = 64


def rows(seed: int, outliers: bool) -> Any:
    """Normal rows; with outliers, some channels are ten times as large, and off zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((40, PAGE, DIM))
    if outliers:
        x[..., :4] = 10 * x[..., :4] + 8
    return x.astype(np.float32)


def off(fmt: Any, k: Any, v: Any) -> tuple[float, float]:
    """Root mean square errors of keys and of values, over the plain channels."""
    got = fmt.unpack(fmt.pack(k, v, OPS), DIM, OPS)
    return tuple(float(np.sqrt(((a - b)[..., 4:] ** 2).mean())) for a, b in zip(got, (k, v), strict=True))


def test_a_channel_of_its_own_keeps_others_from_outliers() -> None:
    k = rows(0, outliers=True)
    by_row, by_channel = off(Int4(), k, k), off(Int4(keys="channel"), k, k)
    assert by_channel[0] < by_row[0] / 5
    assert by_channel[1] == by_row[1], "values stay per token"
    plain = rows(0, outliers=False)
    assert off(Int4(), plain, plain)[0] < 1.5 * off(Int4(keys="channel"), plain, plain)[0]


@pytest.mark.parametrize("bits", [2, 4])
def test_kivi_rounds_keys_by_channel_and_values_by_row(bits: int) -> None:
    x = rows(1, outliers=True)
    keys, values = off(Kivi(bits), x, x)
    assert keys < values / 2
    # the range of 16 normal numbers is 3.5, and an error within a step is uniform
    assert keys == pytest.approx(3.5 / ((1 << bits) - 1) / 12**0.5, rel=0.15)


def test_zipcache_separates_channels_of_values() -> None:
    v = rows(2, outliers=True)
    separated, plain = off(ZipCache(), v, v)[1], off(Int4(), v, v)[1]
    assert separated < plain / 1.5


def test_turbo_spreads_outliers_over_a_row() -> None:
    """A few large channels cost a turned row less; normal numbers are off by what Lloyd and Max give."""
    x = rows(3, outliers=True)
    assert off(Turbo(), x, x)[0] < off(Int4(), x, x)[0]
    plain = rows(3, outliers=False)
    for bits, variance in ((4, 0.0095), (2, 0.1175)):
        assert off(Turbo(bits), plain, plain)[0] ** 2 == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize(("fmt", "least", "most"), [
    (Int4(), 0.28, 0.3), (Int4(keys="channel"), 0.3, 0.36), (Kivi(), 0.2, 0.22), (Turbo(), 0.26, 0.27),
    (Turbo(2), 0.14, 0.15), (ZipCache(2), 0.21, 0.25),
])  # fmt: skip
def test_bytes_of_a_page(fmt: Any, least: float, most: float) -> None:
    """With factors, of bfloat16's."""
    x = rows(4, outliers=False)
    held = sum(a.nbytes for a in fmt.pack(x, x, OPS).values())
    assert least < held / (2 * 2 * x.size) < most


@pytest.mark.parametrize("spec", ["kivi:bits=3", "turbo:bits=8", "zipcache:bits=1", "kvfmt.int4:keys=row"])
def test_options_are_checked(spec: str) -> None:
    with pytest.raises(MethodError, match="not "):
        parse(spec)


def test_bare_names_stay_those_of_weights() -> None:
    assert resolve("int4") == ("weight", "int4")
    assert resolve("fp8") == ("weight", "fp8")
    assert resolve("kvfmt.int4") == ("kvfmt", "int4")
    with pytest.raises(MethodError, match="several slots"):
        resolve("int8")
