"""What KV formats are for: the errors that each scheme avoids, on rows made to show them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pronghorn.compose import parse, resolve
from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE
from pronghorn.llm import LLM
from pronghorn.methods.kvfmt import think
from pronghorn.methods.kvfmt.gear import Gear
from pronghorn.methods.kvfmt.int4 import Int4
from pronghorn.methods.kvfmt.kivi import Kivi
from pronghorn.methods.kvfmt.think import Think
from pronghorn.methods.kvfmt.turbo import Turbo
from pronghorn.methods.kvfmt.zipcache import ZipCache
from pronghorn.ops.ref import Ops
from tests.lookups import MODEL, answered, tasks

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


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("bits", [2, 4])
def test_gear_is_nearer_with_each_part(bits: int, outliers: bool) -> None:
    """Codes alone; with the matrix of low rank; with what stands by itself."""
    x = rows(5, outliers)

    def error(fmt: Any) -> Any:
        got = fmt.unpack(fmt.pack(x, x, OPS), DIM, OPS)
        return np.array([np.linalg.norm(a - x) / np.linalg.norm(x) for a in got])

    plain, low, both = (error(Gear(bits, *parts)) for parts in ((0, 0.0), (1, 0.0), (1, 0.015)))
    assert (low < 0.96 * plain).all()
    assert (both < 0.92 * low).all()


def test_gear_keeps_outliers_and_nothing_of_their_size_elsewhere() -> None:
    x = 0.01 * rows(6, outliers=False)
    x[:, 3, 5] = 100
    for got in Gear().unpack(Gear().pack(x, x, OPS), DIM, OPS):
        assert (got[:, 3, 5] == 100).all()
        assert np.abs(np.where(x == 100, 0, got - x)).max() < 0.005


def test_think_drops_channels_by_their_numbers() -> None:
    k = rows(7, outliers=False)
    k[:20, :, ::2] *= 0.1
    k[20:, :, 1::2] *= 0.1
    got, values = Think(0.5).unpack(Think(0.5).pack(k, k, OPS), DIM, OPS)
    assert (got[:20, :, ::2] == 0).all()
    assert (got[20:, :, 1::2] == 0).all()
    assert np.array_equal(np.abs(got).max(axis=-1), np.abs(values).max(axis=-1)), "the others are whole"


def test_gear_and_think_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the look-up model, as well as whole rows do; channels by lot do not."""

    def right(kind: str, *use: str) -> int:
        llm = LLM(MODEL, use=use, threads=1, defaults=("match", "fcfs"))
        said = answered(llm, tasks(kind, 24))
        llm.close()
        return said

    assert right("copy") == right("copy", "gear") == 24
    assert right("copy", "gear:bits=2") > right("copy", "gear:bits=2,rank=0,outliers=0")
    assert right("kv", "think") == right("kv", "think:window=0") == 24
    lot = np.random.default_rng(0)
    monkeypatch.setattr(think, "_weights", lambda k, ops: lot.random((len(k), k.shape[2])))
    assert right("kv", "think:window=0") <= 18


@pytest.mark.parametrize(("fmt", "least", "most"), [
    (Int4(), 0.28, 0.3), (Int4(keys="channel"), 0.3, 0.36), (Kivi(), 0.2, 0.22), (Turbo(), 0.26, 0.27),
    (Turbo(2), 0.14, 0.15), (ZipCache(2), 0.21, 0.25), (Gear(2), 0.3, 1 / 3), (Gear(4), 0.43, 0.45),
    (Think(), 0.8, 0.82), (Think(0.5), 0.75, 0.76),
])  # fmt: skip
def test_bytes_of_a_page(fmt: Any, least: float, most: float) -> None:
    """With factors, of bfloat16's."""
    x = rows(4, outliers=False)
    held = sum(a.nbytes for a in fmt.pack(x, x, OPS).values())
    assert least < held / (2 * 2 * x.size) < most


@pytest.mark.parametrize(
    "spec",
    [
        "kivi:bits=3",
        "turbo:bits=8",
        "zipcache:bits=1",
        "zipcache:salient=10",
        "mikv:salient=0",
        "think:window=-1",
        "kvfmt.int4:keys=row",
        "gear:bits=3",
        "gear:rank=3",
        "gear:outliers=0.1",
        "think:prune=1",
    ],
)
def test_options_are_checked(spec: str) -> None:
    with pytest.raises(MethodError, match="not "):
        parse(spec)


def test_bare_names_stay_those_of_weights() -> None:
    assert resolve("int4") == ("weight", "int4")
    assert resolve("fp8") == ("weight", "fp8")
    assert resolve("kvfmt.int4") == ("kvfmt", "int4")
    with pytest.raises(MethodError, match="several slots"):
        resolve("int8")
