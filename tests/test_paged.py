"""Sealed pages in a file: the same tokens as without, less memory, and a full disk harms one request only."""

from __future__ import annotations

import errno
import mmap
import os
import resource
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pronghorn.compose import compose
from pronghorn.errors import MethodError
from pronghorn.kv import paged
from pronghorn.kv.store import Store
from pronghorn.llm import LLM
from pronghorn.ops.ref import Ops
from pronghorn.run.native import NativeRunner
from pronghorn.seq import Request, Seq
from tests.memory import SMAPS, alone, resident

STORY = (
    "Once upon a time there was a little fox who lived at the edge of a great wood. Every morning it went "
    "down to the river, looked at the water and wondered where all of it came from. "
) * 8
QUEST = "quest:tokens=48,dense_layers=0"
USES = [  # every selector, over exact pages or packed ones
    (QUEST,), (QUEST, "kvfmt.int8"), (QUEST, "kivi"),
    ("double-sparsity:tokens=48,dense_layers=0", "kvfmt.int4"),
    ("tidal:tokens=48",), ("sentence-kv:tokens=48",), ("squeezed:tokens=48",), ("actqkv:tokens=48",),
    ("lserve:tokens=48",), ("tokenselect:tokens=48,start=16,recent=16",),
    ("recycled:tokens=48,full_below=-1",), (QUEST, "tova:budget=200"),
]  # fmt: skip
LITTLE = "0.00005"  # GiB: 13 pages of the system's


def opened(folder: Path, use: Sequence[str], paging: bool, **options: Any) -> LLM:
    own = (f'pages:folder="{folder}",ram_gb={LITTLE}',) if paging else ()
    return LLM(use=(*use, *own), defaults=("fcfs",), **options)


def requests(llm: LLM, n: int = 24) -> list[Request]:
    """Two that share a beginning, one sampled, one that shares nothing, and two answers to one prompt."""
    ids = tuple(llm.tokenizer.encode(STORY))
    return [
        Request(ids[:330], n, ignore_eos=True),
        Request(ids[:280], n, 0.8, seed=7, ignore_eos=True),
        Request(ids[40:200], n, ignore_eos=True),
        Request(ids[5:230], n, 0.7, seed=3, n=2, ignore_eos=True),
    ]


def tokens(groups: Sequence[Sequence[Seq]]) -> list[list[int]]:
    return [list(s.new) for g in groups for s in g]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many units were given back, each time."""
    counts: list[int] = []
    give = paged.FileArena.give
    monkeypatch.setattr(paged.FileArena, "give", lambda self, u: (counts.append(len(u)), give(self, u))[1])
    return counts


@cache
def plain(use: tuple[str, ...], backend: str = "native") -> list[list[int]]:
    llm = opened(Path(), use, False, backend=backend)
    return tokens(llm.engine.run(requests(llm, 24 if backend == "native" else 3)))


@pytest.mark.parametrize("use", USES, ids="+".join)
def test_the_same_tokens(use: tuple[str, ...], tmp_path: Path, given: list[int]):
    llm = opened(tmp_path, use, True)
    assert tokens(llm.engine.run(requests(llm))) == plain(use)
    assert sum(given) > 1000, "nothing left memory: the comparison says nothing"
    assert not list(tmp_path.iterdir()), "the file has no name"
    assert llm.engine.store.held == 0
    llm.close()


def test_the_same_tokens_by_the_reference(tmp_path: Path, given: list[int]):
    llm = opened(tmp_path, (QUEST,), True, backend="ref")
    assert tokens(llm.engine.run(requests(llm, 3))) == plain((QUEST,), "ref")
    assert sum(given) > 100
    llm.close()


def test_dropping_what_the_disk_does_not_have_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    """The control: a private mapping forgets what was written when its memory is given back."""
    forgetful = SimpleNamespace(**vars(mmap))
    forgetful.mmap = partial(mmap.mmap, flags=mmap.MAP_PRIVATE)
    monkeypatch.setattr(paged, "mmap", forgetful)
    llm = opened(tmp_path, (QUEST,), True)
    assert tokens(llm.engine.run(requests(llm))) != plain((QUEST,))
    llm.close()


def test_what_is_missing_is_asked_for_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Who reads what nobody asked for has a major fault."""
    faults, marks = [], paged.FileArena.marks
    for told in (True, False):
        if not told:
            monkeypatch.setattr(paged.FileArena, "marks", lambda self, kv: 0 * marks(self, kv))
        llm = opened(tmp_path, (QUEST,), True)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        assert tokens(llm.engine.run(requests(llm))) == plain((QUEST,))
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_majflt - before)
        llm.close()
    if faults[1] < 100:
        pytest.skip("files are memory here")
    assert faults[0] < faults[1] / 3


def test_marks_name_what_left_memory(tmp_path: Path):
    made = compose(["quest", f'pages:folder="{tmp_path}",ram_gb=1'])
    store = Store(Ops("float32"), 3, 2, 48, "bfloat16", made.kvfmt, made.select, made.rows, [None] * 3)
    pages = made.reside.pages(store)
    kv, arena = store.new(), store.sealed_arena
    assert isinstance(arena, paged.FileArena)
    store.reserve(kv, 64)
    store.extend(kv, range(64))
    store.seal(kv)
    pages.settle()
    assert arena.marks(kv).shape == (6, 4) and not arena.marks(kv).any()
    unit = int(arena.first[3])  # pages of 3 KiB: some lie in two units
    arena.give(np.array([int(kv.sealed[0].blocks[2]) * arena.per_block + unit]))
    found = arena.marks(kv)
    lie = [i for i in range(6) if arena.first[i] <= unit < arena.end[i]]
    assert len(lie) > 1 and found[lie, 2].tolist() == [2] * len(lie) and found.sum() == 2 * len(lie)
    kv.free()
    pages.close()


def test_from_stored_rows_among_others_that_leave(tmp_path: Path, given: list[int]):
    llm = opened(tmp_path, (QUEST, "prefix", "fcfs:chunk=64"), True)
    engine = llm.engine
    for _ in range(2):  # the second time from stored rows
        groups = []
        for r in requests(llm):
            groups.append(engine.submit(r))
            lost = engine.submit(Request(tuple(llm.tokenizer.encode(STORY))[len(groups) :], 60))
            for _ in range(9):
                engine.step()
            engine.cancel(lost[0])
        while engine.busy:
            engine.step()
        assert tokens(groups) == plain((QUEST,))
    assert groups[0][0].counts.reused > 0
    assert sum(given) > 1000
    llm.close()
    assert engine.store.held == 0


def test_rows_given_up_and_run_again(tmp_path: Path, given: list[int]):
    llm = opened(tmp_path, (QUEST, "sarathi"), True)
    engine = llm.engine
    groups = [engine.submit(r) for r in requests(llm)]
    for step in range(500):
        if not engine.busy:
            break
        engine.step()
        if step % 7 == 5 and engine.running:
            seq = engine.running[0]
            engine.drafting.forget(seq)
            engine.memory.give_up(seq, engine.cost)
            engine.running.remove(seq)
            engine.waiting.insert(0, seq)
    assert tokens(groups) == plain((QUEST,))
    assert sum(g[0].counts.preempted for g in groups) > 1 and sum(given) > 1000
    llm.close()


def test_a_full_disk_harms_the_request_that_filled_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(paged, "SLAB", 1 << 20)
    llm = opened(tmp_path, (QUEST,), True)
    engine, ids = llm.engine, tuple(llm.tokenizer.encode(STORY))
    (first,) = engine.submit(Request(ids[40:200], 24, ignore_eos=True))
    for _ in range(3):
        engine.step()
    assert first.kv.n_sealed

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    reserve = paged._reserve
    monkeypatch.setattr(paged, "_reserve", full)
    seqs = [engine.submit(Request(ids, 40, seed=i, ignore_eos=True))[0] for i in range(4)]
    while engine.busy:
        engine.step()
    assert list(first.new) == plain((QUEST,))[2]
    lost = [s for s in seqs if s.finish == "error"]
    assert lost, "there was room for all"
    assert all(str(tmp_path) in s.error and "No space left" in s.error for s in lost)
    assert engine.store.held == 0
    monkeypatch.setattr(paged, "_reserve", reserve)
    assert tokens(engine.run(requests(llm))) == plain((QUEST,))
    llm.close()


def test_a_disk_that_fails_ends_paging_not_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", broken)
    llm = opened(tmp_path, (QUEST,), True)
    with pytest.warns(UserWarning, match="stay in memory"):
        groups = llm.engine.run(requests(llm))
    assert tokens(groups) == plain((QUEST,))
    llm.close()


def test_who_cannot_write_there_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MethodError, match="name another folder"):
        opened(tmp_path / "file", (QUEST,), True)
    with pytest.raises(MethodError, match="ram_gb"):
        compose(["pages:ram_gb=0"])


@pytest.mark.skipif(not SMAPS.exists(), reason="this system does not tell")
def test_memory_falls_to_the_budget(tmp_path: Path):
    """As the kernel counts it."""
    alone(f"from tests import test_paged as t; t.hold_a_budget({str(tmp_path)!r})")


def hold_a_budget(folder: str) -> None:
    """48 MiB of rows, of which 6 may stay."""
    made = compose(["quest", f'pages:folder="{folder}",ram_gb={6 / 1024}'])
    store = Store(Ops("float32"), 12, 2, 64, "bfloat16", made.kvfmt, made.select, made.rows, [None] * 12)
    before = resident()
    pages = made.reside.pages(store)
    kv = store.new()
    n = 8192
    for first in range(0, n, 1024):
        store.reserve(kv, 1024)
        store.extend(kv, range(first, first + 1024))
        store.seal(kv)
        pages.settle()
    index = n // 16 * (store.sealed_arena.stride - store.sealed_layout.member * 24)
    assert store.sealed_arena.held >= 48 << 20
    assert resident() - before < (6 << 20) + index + (12 << 20)
    for layer in range(12):  # all of it comes back
        store.sealed_rows(kv, layer, 0)
    pages.settle()
    assert resident() - before < (6 << 20) + index + (12 << 20)
    kv.free()
    pages.close()


def test_marks_that_are_too_few_are_refused(tmp_path: Path):
    """Nothing is written outside of an array, whatever its shape."""
    llm = opened(tmp_path, (QUEST,), False)
    engine, runner = llm.engine, llm.engine.runner
    assert isinstance(runner, NativeRunner)
    (seq,) = engine.submit(Request(tuple(llm.tokenizer.encode(STORY))[:200], 9, ignore_eos=True))
    while not seq.kv.n_sealed:
        engine.step()
    one = np.ones(1, np.int32)
    heads, pages = runner.bound.n_layers * runner.bound.n_kv, len(seq.kv.sealed[0].blocks)
    out = np.zeros((1, runner.bound.n_vocab), np.float32)
    for shape in ((heads, pages - 1), (heads - 1, pages), (0, 0)):
        with pytest.raises(ValueError, match="marks"):
            runner.exe.run(
                one, 200 * one, 201 * one, 0 * one, -one, one, [seq.kv], [], [], out, [], [],
                [np.zeros(shape, np.uint8)],
            )  # fmt: skip
    engine.cancel(seq)
    llm.close()


def test_least_recent_pages_leave_first():
    (method,) = [compose(["pages"]).reside]
    held, last = np.arange(10, 16), np.array([3, 0, 9, 1, 8, 7])
    assert sorted(method.victims(3, held, last)) == [10, 11, 13]
    assert len(method.victims(6, held, last)) == 6
