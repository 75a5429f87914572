"""Slabs of a mapping: what is given back leaves the process, and huge pages add no more than one of them."""

from __future__ import annotations

import pytest

from pronghorn.kv.slabs import HUGE_FROM, Slabs
from tests.memory import SMAPS, alone, resident

SIZE = 255 * 1024 + 100  # no multiple of a page: slabs still share none
HUGE = 2 << 20

pytestmark = pytest.mark.skipif(not SMAPS.exists(), reason="this system does not tell a process's memory")


@pytest.mark.parametrize("what", ["leave_one_by_one", "cost_less_than_a_huge_page_more"])
def test_slabs(what: str):
    alone(f"from tests import test_slabs as t; t.warm(); t.{what}()")


def warm() -> None:
    """What the interpreter takes for itself on first use is none of what slabs hold."""
    slabs = Slabs(SIZE)
    n = (HUGE_FROM + 1) * slabs.per_map + 1
    kept = []
    for i in range(n):
        kept.append(slabs.take(i))
        kept[i][:] = 1
        resident()
    assert all((slab == 1).all() for slab in kept)
    del kept
    for i in range(n):
        slabs.give(i)


def leave_one_by_one() -> None:
    slabs = Slabs(SIZE)
    before, n = resident(), 100
    for i in range(n):
        slabs.take(i)[:] = 1
    assert resident() - before == pytest.approx(n * slabs.step, rel=0.05)
    kept = slabs.take(n)
    kept[:] = 7
    for i in range(0, n, 2):
        slabs.give(i)
    assert resident() - before == pytest.approx(n // 2 * slabs.step, rel=0.1)
    assert (slabs.take(0) == 0).all()
    slabs.give(0)
    for i in range(1, n, 2):
        slabs.give(i)
    assert (kept == 7).all()
    assert resident() - before < 3 * slabs.step
    slabs.give(n)
    assert not slabs.maps


def cost_less_than_a_huge_page_more() -> None:
    slabs = Slabs(SIZE)
    before = resident()
    n = (HUGE_FROM + 1) * slabs.per_map + 1
    kept = []
    for i in range(n):
        kept.append(slabs.take(i))
        kept[i][:] = i % 251
        if i > n - 20:
            assert resident() - before < (i + 1) * slabs.step * 1.005 + HUGE
    assert slabs.huge
    assert all((slab == i % 251).all() for i, slab in enumerate(kept))  # what has moved too
    del kept
    for i in range(n - 9):  # few are left, in a mapping of huge pages
        slabs.give(i)
    assert resident() - before == pytest.approx(9 * slabs.step, rel=0.1)
    for i in range(n - 9, n):
        slabs.give(i)
    assert not slabs.maps
    assert resident() - before < HUGE
