"""Slabs of a mapping: what is given back leaves the process, and huge pages add no more than one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pronghorn.kv.slabs import HUGE_FROM, Slabs

SMAPS = Path("/proc/self/smaps_rollup")
SIZE = 255 * 1024 + 100  # no multiple of a page: slabs still share none
HUGE = 2 << 20

pytestmark = pytest.mark.skipif(not SMAPS.exists(), reason="this system does not tell a process's memory")


def told() -> int:
    lines = SMAPS.read_text(encoding="utf-8").splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("Rss:"))


@pytest.fixture(scope="module", autouse=True)
def warm():
    """What the interpreter takes for itself on first use is none of what slabs hold."""
    slabs = Slabs(SIZE)
    n = (HUGE_FROM + 1) * slabs.per_map + 1
    kept = []
    for i in range(n):
        kept.append(slabs.take(i))
        kept[i][:] = 1
        told()
    assert all((slab == 1).all() for slab in kept)
    del kept
    for i in range(n):
        slabs.give(i)


def test_slabs_leave_one_by_one():
    slabs = Slabs(SIZE)
    before, n = told(), 100
    for i in range(n):
        slabs.take(i)[:] = 1
    assert told() - before == pytest.approx(n * slabs.step, rel=0.05)
    kept = slabs.take(n)
    kept[:] = 7
    for i in range(0, n, 2):
        slabs.give(i)
    assert told() - before == pytest.approx(n // 2 * slabs.step, rel=0.1)
    assert (slabs.take(0) == 0).all()
    slabs.give(0)
    for i in range(1, n, 2):
        slabs.give(i)
    assert (kept == 7).all()
    assert told() - before < 3 * slabs.step
    slabs.give(n)
    assert not slabs.maps


def test_huge_pages_cost_less_than_one_of_them():
    slabs = Slabs(SIZE)
    before = told()
    n = (HUGE_FROM + 1) * slabs.per_map + 1
    kept = []
    for i in range(n):
        kept.append(slabs.take(i))
        kept[i][:] = i % 251
        if i > n - 20:
            assert told() - before < (i + 1) * slabs.step * 1.005 + HUGE
    assert slabs.huge
    assert all((slab == i % 251).all() for i, slab in enumerate(kept))  # what has moved too
    del kept
    for i in range(n - 9):  # few are left, in a mapping of huge pages
        slabs.give(i)
    assert told() - before == pytest.approx(9 * slabs.step, rel=0.1)
    for i in range(n - 9, n):
        slabs.give(i)
    assert not slabs.maps
    assert told() - before < HUGE
