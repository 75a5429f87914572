"""Merging policies on a model that looks things up: what they find, against what they are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pronghorn.llm import LLM
from pronghorn.methods.kv.kvmerger import KvMerger

LOOKUP = Path(__file__).parent / "models" / "lookup"
ITEMS = 20


@pytest.fixture(autouse=True)
def model() -> None:
    pytest.importorskip("pronghorn.ops.cpu._native")
    if not LOOKUP.is_dir():
        pytest.skip(f"{LOOKUP} is not here")


@cache
def found(method: Any, kind: str = "mn", length: int = 512) -> int:
    """Of `ITEMS` texts with four needles, those of which all are listed."""
    from recipes.lookup.measure import judge, made

    llm = LLM(LOOKUP, use=[method] if method else [], threads=1, defaults=("match", "fcfs"))
    right, _ = judge(llm, [made(kind, i, length) for i in range(ITEMS)])
    llm.close()
    return right


@dataclass(frozen=True)
class AnyNeighbours(KvMerger):
    """The control: merging sets by lot."""

    slot = "kv"

    def _alike(self, k: Any) -> Any:
        return np.random.default_rng(len(k)).random(len(k) - 1)


def test_dense_finds_all() -> None:
    assert found("") == ITEMS


def test_ems_keeps_needles_in_a_sixteenth() -> None:
    """At least two points of a hundred better than SnapKV with as many rows, as its paper says."""
    assert found("ems:budget=32,window=8,every=16") >= found("snapkv:budget=32,window=8") + 0.02 * ITEMS


def test_kvmerger_goes_by_likeness() -> None:
    """With half of the rows; sets by lot lose 20 points or more."""
    mine = found("kvmerger:budget=256,threshold=0.3,every=16")
    assert mine >= 0.9 * ITEMS
    assert found(AnyNeighbours(256, 0.0, every=16)) <= mine - 0.2 * ITEMS
