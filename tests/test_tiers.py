"""States as bytes, on disk and swapped out: what comes back is what left, or nothing does."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pronghorn.kv import disk as disks
from pronghorn.kv.disk import Disk
from pronghorn.kv.image import SIZE, ImageError, digest, dump, load
from pronghorn.kv.layout import PAGE
from pronghorn.kv.store import SeqKV, Store
from pronghorn.kv.tiers import Swap
from pronghorn.ops.ref import Ops
from pronghorn.types import KVPlan
from tests.states import GRID, KINDS, grow, image, ints, make, rows_of, state, text

MARK = digest(b"a model")
SHAPES = [(0, 0), (1, 0), (16, 0), (17, 0), (70, 64), (64, 64), (200, 96)]  # rows, sealed


def as_bytes(kv: SeqKV, mark: bytes = MARK) -> bytes:
    return b"".join(bytes(p) for p in dump(kv, mark))


def ragged(store: Store) -> SeqKV:
    """A state that dropped rows, other ones in each group."""
    kv = state(store, text(3, 90), 64)
    groups = len(store.sealed_layout.groups)
    store.seal(kv, KVPlan({g: np.arange(g, 90, 2 + g).astype(np.int32) for g in range(groups)}))
    grow(kv, text(3, 110))
    return kv


# ------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_an_image_gives_back_every_bit(kind: str, backend: str) -> None:
    ops = Ops("float32", pytest.importorskip("torch")) if backend == "torch" else Ops("float32")
    store = make(kind, ops)
    for kv in [*(state(store, text(1, n), sealed) for n, sealed in SHAPES), ragged(store)]:
        back = load(store, MARK, as_bytes(kv))
        assert image(back) == image(kv)
        grow(kv, text(9, kv.length + 40))  # the copy is a sequence like any other
        grow(back, text(9, back.length + 40))
        store.seal(kv), store.seal(back)
        assert image(back) == image(kv)
        kv.free(), back.free()
    assert store.held == 0


def test_an_image_of_something_else_is_refused_with_a_reason() -> None:
    store = make()
    kv = state(store, text(1, 40))
    data = as_bytes(kv)
    with pytest.raises(ImageError, match="another model"):
        load(store, digest(b"another"), data)
    for kind in ("bf16", "int8", "heads"):
        with pytest.raises(ImageError, match="laid out otherwise"):
            load(make(kind), MARK, data)
    with pytest.raises(ImageError, match="version"):
        load(store, MARK, data[:8] + struct.pack("<I", 99) + data[12:])
    with pytest.raises(ImageError, match="no image"):
        load(store, MARK, b"")
    kv.free()
    assert store.held == 0


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_changed_byte_is_found(data: Any) -> None:
    store = make("int8")
    kv = state(store, text(1, 70), 32)
    good = as_bytes(kv)
    bad = bytearray(good)
    how = data.draw(st.sampled_from(["change", "cut", "add", "move"]))
    at = data.draw(st.one_of(st.integers(0, SIZE), st.integers(0, len(good) - 1)))
    if how == "change":
        bad[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del bad[at:]
    elif how == "add":
        bad += bytes(data.draw(st.integers(1, 99)))
    else:
        bad[at:at] = b"\1"
    held = store.held
    with pytest.raises(ImageError):
        load(store, MARK, bytes(bad))
    assert store.held == held


def test_every_byte_of_head_and_tables_counts() -> None:
    store = make()
    kv = state(store, text(1, 20))
    good = as_bytes(kv)
    for at in range(SIZE + 200):
        bad = bytearray(good)
        bad[at] ^= 0x40
        with pytest.raises(ImageError):
            load(store, MARK, bytes(bad))


def signed(data: bytes) -> bytes:
    """With the digest of the head made right: what somebody would write who means harm."""
    tables = struct.unpack_from("<Q", data, 8 + 4 + 4 + 96 + 6 * 8)[0]
    end = SIZE + tables if tables < len(data) else len(data)
    return data[: SIZE - 32] + digest(data[: SIZE - 32], data[SIZE:end]) + data[SIZE:]


@pytest.mark.parametrize("field", [0, 1, 2, 3, 5, 6, 7])  # all numbers but the grid
@pytest.mark.parametrize("value", [1 << 63, (1 << 64) - 1, 1 << 40, 1 << 25, 12345, 0])
def test_huge_lengths_allocate_nothing(field: int, value: int) -> None:
    store = make()
    kv = state(store, text(1, 40))
    good = as_bytes(kv)
    at = 8 + 4 + 4 + 96 + 8 * field
    if struct.unpack_from("<Q", good, at)[0] == value:
        return  # this is its value
    bad = signed(good[:at] + struct.pack("<Q", value) + good[at + 8 :])
    load(store, MARK, good).free()
    held = store.held
    tracemalloc.start()
    with pytest.raises(ImageError):
        load(store, MARK, bad)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    assert store.held == held


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_tables_that_lie_are_refused(data: Any) -> None:
    """Digests are right, numbers are not: what is accepted is a state all the same."""
    store = make("heads")
    kv = state(store, text(1, 70), 32)
    good = as_bytes(kv)
    tables = struct.unpack_from("<Q", good, 8 + 4 + 4 + 96 + 6 * 8)[0]
    at = data.draw(st.integers(0, tables // 4 - 1)) * 4 + SIZE
    value = data.draw(st.sampled_from([0, 1, 5, 15, 16, 17, -1, 1 << 30, -(1 << 31)]))
    bad = signed(good[:at] + struct.pack("<i", value) + good[at + 4 :])
    try:
        back = load(store, MARK, bad)
    except ImageError:
        return
    assert image(back) == image(kv)


# ------------------------------------------------------------------------------- disk


def opened(store: Store, folder: Path, limit: int = 1 << 30, mark: str = "model") -> Disk:
    disk = Disk(store, folder, limit, mark)
    disk._look = lambda: disk._scan()  # type: ignore[method-assign]  # at every turn
    return disk


def write(disk: Disk, ids: list[int], sealed: int = 0) -> None:
    assert disk.offer(ints(ids), state(disk.store, ids, sealed), GRID)
    disk.flush()


def fetch(disk: Disk, ids: list[int]) -> int:
    """Rows that the disk gives a text, checked bit for bit."""
    record, n = disk.find(ints(ids))
    if record is None:
        return 0
    none = disk.store.new()
    kv = disk.read(record, ints(ids), none, 0)
    if kv is None:
        return 0
    want = state(disk.store, ids[:n], min(record.n_sealed, n) // GRID * GRID)
    assert rows_of(kv, n) == image(want)
    kv.free(), want.free()
    return n


@pytest.mark.parametrize("kind", KINDS)
def test_states_survive_a_restart(kind: str, tmp_path: Path) -> None:
    trunk = text(0, 150)
    texts = [(trunk[:40], 0), (trunk, 0), (trunk, 128), (trunk[:100] + text(1, 60), 96), (text(2, 33), 32)]
    store = make(kind)
    disk = opened(store, tmp_path)
    for ids, sealed in texts:
        write(disk, ids, sealed)
    assert not disk.trouble
    disk.close()
    assert store.held == 0
    store = make(kind)
    again = opened(store, tmp_path)
    for ids, sealed in texts:
        assert fetch(again, ids) == len(ids)
        assert fetch(again, [*ids, 5, 5]) == len(ids)
        if not sealed:
            assert fetch(again, [*ids[:24], 5]) >= 24
    assert fetch(again, trunk[:15]) == 0, "less than a page is not looked for"
    assert again.counted.damaged == 0
    assert opened(store, tmp_path, mark="another").find(ints(trunk)) == (None, 0)
    again.close()
    assert store.held == 0


def test_a_beginning_is_written_once(tmp_path: Path) -> None:
    store, trunk = make(), text(0, 125 * PAGE)
    disk = opened(store, tmp_path)
    for i in range(32):
        write(disk, [*trunk, *text(i + 1, 40)])
    pages = 125 + 32 * 3
    assert disk.held < 1.2 * pages * store.open_layout.block + 32 * 1000
    again = opened(make(), tmp_path)
    assert all(fetch(again, [*trunk, *text(i + 1, 40)]) == len(trunk) + 40 for i in range(32))
    disk.close()


def test_rows_in_memory_are_not_read_again(tmp_path: Path) -> None:
    store, ids = make(), text(0, 160)
    disk = opened(store, tmp_path)
    write(disk, ids[:96])
    write(disk, ids)
    (tmp_path / next(r.name for r in disk._records.values() if not r.at)).unlink()
    record = next(r for r in disk._records.values() if r.at)
    base = state(store, ids[:100])
    kv = disk.read(record, ints(ids), base, 100)
    assert kv is not None
    want = state(store, ids)
    assert image(kv) == image(want)
    assert kv.open[0] == base.open[0]
    disk.close()


@pytest.mark.parametrize("part", ["head", "tables", "data", "end", "empty", "swapped", "parent"])
def test_damage_is_found_dropped_and_counted(part: str, tmp_path: Path) -> None:
    store, ids, other = make(), text(0, 100), text(1, 100)
    disk = opened(store, tmp_path)
    write(disk, ids[:64])
    write(disk, ids)
    write(disk, other)
    by_ids = {len(r.ids) if not r.at else "lower": r for r in disk._records.values()}
    disk.close()
    upper, lower = tmp_path / by_ids[64].name, tmp_path / by_ids["lower"].name
    raw = bytearray(lower.read_bytes())
    if part == "swapped":  # a whole record under another's name
        lower.write_bytes((tmp_path / by_ids[100].name).read_bytes())
    elif part == "parent":
        upper.write_bytes(b"x")
    else:
        at = {"head": 100, "tables": SIZE + 9, "data": len(raw) - 200, "end": len(raw) - 1, "empty": 0}[part]
        raw = raw[:at] if part in ("end", "empty") else raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        lower.write_bytes(raw)
    again = opened(store, tmp_path)
    assert fetch(again, ids) in ((0,) if part == "parent" else (0, 64))
    assert fetch(again, ids) == (0 if part == "parent" else 64)
    assert fetch(again, other) == 100
    assert again.counted.damaged == 1
    write(again, ids)  # and it can be written anew
    assert fetch(again, ids) == 100
    again.close()
    assert store.held == 0


def test_the_folder_is_bounded_and_keeps_what_is_used(tmp_path: Path) -> None:
    store = make()
    limit = 12 * (6 * store.open_layout.block + 1000)
    disk = opened(store, tmp_path, limit)
    write(disk, text(0, 96))
    for i in range(1, 40):
        fetch(disk, text(0, 96))
        write(disk, text(i, 96))
        files = sum(p.stat().st_size for p in tmp_path.iterdir())
        assert files == disk.held <= limit
    assert disk.counted.evicted >= 25
    assert fetch(disk, text(0, 96)) == 96
    write(disk, text(50, 96 * 14))  # larger than the folder may be
    assert fetch(disk, text(50, 96 * 14)) == 0 and not disk.trouble
    disk.close()
    third = opened(store, tmp_path, limit // 3, mark="another")  # other models' records count and leave
    write(third, text(0, 96))
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= limit // 3
    third.close()
    assert store.held == 0


def test_several_processes_may_use_a_folder(tmp_path: Path) -> None:
    a, b = opened(make(), tmp_path), opened(make(), tmp_path)
    trunk = text(0, 64)
    write(a, trunk)
    write(b, [*trunk, *text(1, 40)])
    assert len(b) == 2, "it goes on from the other's record"
    assert fetch(a, [*trunk, *text(1, 40)]) == 104
    for p in tmp_path.iterdir():
        p.unlink()
    assert fetch(a, trunk) == fetch(b, trunk) == 0
    write(b, trunk)
    write(a, trunk)
    assert len(list(tmp_path.iterdir())) == 1
    for disk in (a, b):
        assert fetch(disk, trunk) == 64 and not disk.trouble
        disk.close()


def test_a_full_disk_stops_writing_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = make()
    disk = opened(store, tmp_path)
    write(disk, text(0, 64))

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disks.os, "fsync", full)
    disk.offer(ints(text(1, 64)), state(store, text(1, 64)), GRID)
    disk.flush()
    assert "No space left" in disk.trouble
    assert not disk.offer(ints(text(2, 64)), state(store, text(2, 64)), GRID)
    assert len([r for r in caplog.records if "no longer written" in r.message]) == 1
    assert fetch(disk, text(0, 64)) == 64
    assert fetch(disk, text(1, 64)) == 0
    assert len(list(tmp_path.iterdir())) == 1, "nothing half written stays"
    disk.close()
    assert store.held == 0


def test_an_unusable_folder_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    store = make()
    disk = Disk(store, tmp_path / "file" / "folder", 1 << 30, "model")
    assert disk.trouble and len(caplog.records) == 1
    assert not disk.offer(ints(text(0, 64)), state(store, text(0, 64)), GRID)
    assert disk.find(ints(text(0, 64))) == (None, 0)
    disk.close()
    assert store.held == 0


def test_pages_come_back_when_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    disk = opened(store, tmp_path)
    hold = disk._lock
    hold.acquire()  # the thread waits for it
    for i in range(disks.QUEUE + 5):
        disk.offer(ints(text(i, 64)), state(store, text(i, 64)), GRID)
    assert store.held == disks.QUEUE * 4 * store.open_layout.block, "the queue is bounded"
    assert disk.counted.skipped == 5
    assert disk.cancel()
    assert store.held <= 4 * store.open_layout.block
    hold.release()
    disk.close()
    assert store.held == 0


CHILD = """
import sys
from pathlib import Path
from tests.states import ints, make, state, text, GRID
from pronghorn.kv.disk import Disk
store = make("int8")
disk = Disk(store, Path(sys.argv[1]), 1 << 30, "model")
print("ready", flush=True)
for i in range(int(sys.argv[2]), 10_000):
    ids = [*text(0, 70), *text(i, 50 + i % 40)]
    disk.offer(ints(ids), state(store, ids, 64), GRID)
    disk.flush()
    assert not disk.trouble
    print(i, flush=True)
"""


def test_killed_at_any_moment_it_loses_nothing(tmp_path: Path) -> None:
    r, done, root = random.Random(5), [], Path(__file__).resolve().parents[1]
    for turn in range(15):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), str(1 + 500 * turn)],
            stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        said = [child.stdout.readline() for _ in range(r.randint(1, 6))]
        time.sleep(r.uniform(0.0, 0.03))
        child.send_signal(signal.SIGKILL)
        said += child.stdout.read().split("\n")[:-1]  # a line that was cut short says nothing
        done += [int(line) for line in said]
        child.wait()
    disk = opened(make("int8"), tmp_path)
    assert len(done) >= 15
    for i in done:
        ids = [*text(0, 70), *text(i, 50 + i % 40)]
        assert fetch(disk, ids) == len(ids)
    assert disk.counted.damaged == 0
    assert not list(tmp_path.glob("*.part")), "what was half written is gone"
    disk.close()


# ------------------------------------------------------------------------------- swap


@pytest.mark.parametrize("where", ["file", "memory"])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_swapped_comes_back_bit_for_bit(kind: str, backend: str, where: str, tmp_path: Path) -> None:
    """Growing, sealing, dropping and moving rows in between, in any order."""
    ops = Ops("float32", pytest.importorskip("torch")) if backend == "torch" else Ops("float32")
    store, r = make(kind, ops), random.Random(3)
    swap = Swap(store, str(tmp_path) if where == "file" else "")
    ids = text(4, 400)
    kv, twin = store.new(), store.new()
    for _ in range(40):
        move = r.choice(["grow", "grow", "seal", "drop", "wait", "hurry", "wait"])
        if move == "grow":
            n = min(len(ids), kv.length + r.choice([1, 5, 16, 20]))
            grow(kv, ids[:n]), grow(twin, ids[:n])
        elif move == "seal":
            store.seal(kv), store.seal(twin)
        elif move == "drop" and kv.n_rows > 4:
            plan = {
                g: np.flatnonzero(np.random.default_rng(g).random(s.n + kv.n_open) < 0.8).astype(np.int32)
                for g, s in enumerate(kv.sealed)
            }
            store.seal(kv, KVPlan(plan)), store.seal(twin, KVPlan(plan))
        else:
            ticket = swap.out(kv)
            held = store.bytes_of(twin)
            if move == "wait":
                swap.settle(block=True)
                assert store.held <= held, "only the twin is there"
            kv = swap.back(ticket)
            assert not ticket.lost
        assert image(kv) == image(twin)
    kv.free(), twin.free()
    swap.close()
    assert store.held == 0


def test_only_new_pages_are_written(tmp_path: Path) -> None:
    store, ids = make(), text(4, 400)
    swap = Swap(store, str(tmp_path))
    kv = state(store, ids[:160])
    ticket = swap.out(kv)
    swap.settle(block=True)
    assert ticket.copied == 10
    kv = swap.back(ticket)
    grow(kv, ids[:176])
    ticket = swap.out(kv)
    swap.settle(block=True)
    assert ticket.copied == 11, "a second swap of a sequence that grew by a page writes one page"
    kv = swap.back(ticket)
    grow(kv, ids[:180])
    kv = swap.back(swap.out(kv))  # its pages were still there
    grow(kv, ids[:190])
    ticket = swap.out(kv)
    swap.settle(block=True)
    assert ticket.copied in (12, 13), "the last page twice, if it was written in between"
    kv = swap.back(ticket)
    store.seal(kv)
    grow(kv, ids[:200])
    ticket, copied = swap.out(kv), ticket.copied
    swap.settle(block=True)
    assert ticket.copied - copied == 13, "a barrier rewrote them all"
    kv = swap.back(ticket)
    store.seal(kv)
    ticket, copied = swap.out(kv), ticket.copied
    swap.settle(block=True)
    assert ticket.copied - copied == 2, "of the sealed pages, the one that was filled up and the new one"
    swap.drop(ticket)
    swap.close()
    assert store.held == 0


def test_copies_of_sequences_that_ended_are_given_up(tmp_path: Path) -> None:
    store = make()
    swap = Swap(store, str(tmp_path))
    for i in range(20):
        ticket = swap.out(state(store, text(i, 64)))
        swap.settle(block=True)
        if i % 2:
            kv = swap.back(ticket)
            kv.free()  # its sequence ended
        else:
            swap.drop(ticket)
    assert swap._file.end <= 2 * 4 * store.open_layout.block, "places are used again"
    swap.close()
    assert store.held == 0


def test_a_copy_that_is_lost_costs_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    swap = Swap(store, str(tmp_path))

    def fails(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pronghorn.kv.tiers.os.pwrite", fails)
    ticket = swap.out(state(store, text(0, 64)))
    swap.settle(block=True)
    assert ticket.lost and store.held == 0
    assert swap.back(ticket).length == 0
    monkeypatch.undo()
    ticket = swap.out(state(store, text(1, 64)))
    swap.settle(block=True)
    monkeypatch.setattr("pronghorn.kv.tiers.os.preadv", fails)
    assert swap.back(ticket).length == 0 and ticket.lost
    swap.close()
    assert store.held == 0


def test_seconds_follow_what_was_measured(tmp_path: Path) -> None:
    store = make()
    swap = Swap(store, str(tmp_path))
    before = swap.seconds(1 << 20)
    ticket = swap.out(state(store, text(0, 1600)))
    swap.settle(block=True)
    swap.back(ticket).free()
    assert swap.seconds(1 << 20) != before
    assert swap.seconds(2 << 20) == pytest.approx(2 * swap.seconds(1 << 20))
    swap.close()
