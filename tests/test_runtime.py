"""What the native runner takes from the machine: cores, memory, and processor time while it rests."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pronghorn.ops.ref import Ops
from pronghorn.run.native import NativeRunner, usable_cores
from tests.native_tapes import Chunk, Driver, Model, build, store_for, tokens

ROOT = Path(__file__).resolve().parents[1]


def driver(m: Model, threads: int) -> Driver:
    bound = build(m)
    return Driver(NativeRunner(bound, store_for(bound, Ops("float32")), threads), 1)


class Heap(ctypes.Structure):
    """The C library's `struct mallinfo2`."""

    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
                 "fordblks", "keepcost")]  # fmt: skip


def heap() -> tuple[int, int]:
    """Bytes in use in the C library's heap, and bytes that it has mapped for large blocks."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        pytest.skip("a C library without mallinfo2")
    mallinfo2.restype = Heap
    info = mallinfo2()
    return info.uordblks, info.hblkhd


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("experts", [0, 4])
def test_steps_keep_no_memory(threads: int, rows: int, experts: int):
    """The first step of a size makes room; the next 200 leave the heap as it is."""
    d = driver(Model(experts=experts), threads)
    chunk = Chunk(0, tokens(rows), [], [])  # nothing is committed: every step is the same
    for _ in range(3):
        d.step([chunk])
    kept = []
    for _ in range(3):  # Python moves things about now and then; what is kept is kept each time
        before = heap()
        for _ in range(200):
            d.step([chunk])
        in_use, mapped = (a - b for a, b in zip(heap(), before, strict=True))
        assert mapped == 0
        kept.append(in_use)
    assert min(kept) < 200 * 16


def huge() -> int:
    """Bytes of this process for which huge pages were asked."""
    size = total = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("Size:"):
            size = int(line.split()[1]) * 1024
        elif line.startswith("VmFlags:") and "hg" in line.split():
            total += size
    return total


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages here")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="plain memory under AddressSanitizer")
@pytest.mark.parametrize(("hidden", "layers"), [(4096, 1), (64, 6)])
def test_weights_lie_in_huge_pages(hidden: int, layers: int):
    """Large matrices by themselves, small ones side by side."""
    code = (
        "from tests.test_runtime import *\n"
        "before = huge()\n"
        f"d = driver(Model(width=256, hidden={hidden}, layers={layers}), 1)\n"
        "assert huge() - before >= d.runner.exe.weight_bytes * 0.95\n"
        "d.step([Chunk(0, tokens(3))])\n"
    )  # in a process that has no slabs yet
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_threads_sleep_between_steps():
    d = driver(Model(), 3)
    d.step([Chunk(0, tokens(9))])
    time.sleep(0.05)
    start = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - start < 0.1


def test_more_threads_than_processors():
    """One processor for four threads: the same results, and not one time slice after another."""
    code = (
        "import os, time; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from tests.test_runtime import *\n"
        "assert usable_cores() == 1\n"
        "alone, many = driver(Model(), 1), driver(Model(), 4)\n"
        "steps = [[Chunk(0, tokens(n, seed=n))] for n in (30, *[1] * 40)]\n"
        "want = [alone.step(s)[0] for s in steps]\n"
        "start = time.process_time()\n"
        "assert all(np.array_equal(w, many.step(s)[0]) for w, s in zip(want, steps))\n"
        "assert time.process_time() - start < 2\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("outer", "inner", "cores"),
    [("max 100000", "max 100000", 64), ("150000 100000", "max 100000", 2), ("max 100000", "50000 100000", 1),
     ("300000 100000", "800000 100000", 3), ("nonsense", "", 64)],
)  # fmt: skip
def test_a_quota_of_processor_time_counts(outer, inner, cores, tmp_path, monkeypatch):
    monkeypatch.setattr("pronghorn.run.native.physical_cores", lambda: 64)
    groups = tmp_path / "groups"
    (groups / "a" / "b").mkdir(parents=True)
    (groups / "a" / "cpu.max").write_text(outer + "\n")
    (groups / "a" / "b" / "cpu.max").write_text(inner + "\n")
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    assert usable_cores(groups, own) == cores
    assert usable_cores(groups, tmp_path / "nothing") == 64


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(
    "m",
    [Model(), Model(head_norm=True, bias=True), Model(dim=17, heads=6, n_kv=3), Model(scale=0.5),
     Model(layer_norm=True, plain_mlp=True, wpe=True)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_row_ops_inside_other_phases_change_no_bit(m: Model, dtype: str, threads: int):
    """Few rows on several threads run without barriers around row ops, one thread with them. Taps too."""
    m = dataclasses.replace(m, dtype=dtype)
    rng = np.random.default_rng(5)
    taps = ("q.last4", "hidden.0", "hidden.1")
    alone, many = (
        Driver(NativeRunner(b, store_for(b, Ops("float32")), n), 3)
        for n, b in ((1, build(m, taps=taps)), (threads, build(m, taps=taps)))
    )
    for _ in range(30):
        seqs = rng.permutation(3)[: rng.integers(1, 4)]
        chunks = [Chunk(int(s), tokens(int(rng.integers(1, 7)), seed=int(rng.integers(99)))) for s in seqs]
        for a, b in zip(alone.step(chunks, True), many.step(chunks, True), strict=True):
            assert np.array_equal(a, b)
        assert alone.out.taps.keys() == many.out.taps.keys() != set()
        for name, value in alone.out.taps.items():
            assert np.array_equal(value, many.out.taps[name]), name
