"""Memory that methods say they save, read from the arenas and from the system, never from a formula.

Expected values are worked out here by hand from what a method promises; held values are the arenas' own
counts of blocks in use and of slabs, and the process's resident memory as the kernel counts it.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pronghorn.engine import Engine
from pronghorn.kv.arena import Arena
from pronghorn.llm import LLM
from pronghorn.seq import Request, Seq
from tests.engines import engine, prompt
from tests.memory import SMAPS, resident

N_PROMPT, BUDGET, PAGE = 1000, 64, 16
LAYERS, HEADS, DIM = 8, 2, 32  # of the bundled model; stored in bfloat16, two bytes a number
HEAD_PAGE = PAGE * DIM * 2 * 2  # keys and values of one head
FULL_PAGES = 63  # 1,000 rows
ALL = LAYERS * HEADS


@dataclass(frozen=True)
class Bytes:
    """What the arenas count; resident: what the kernel counts for this process."""

    open: int
    sealed: int
    reserved: int
    resident: int

    @property
    def held(self) -> int:
        return self.open + self.sealed


def read(e: Engine) -> Bytes:
    s = e.store
    return Bytes(s.open_arena.held, s.sealed_arena.held, s.reserved, resident())


class Watch:
    """Reads the arenas around every barrier."""

    def __init__(self, e: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[Bytes, Bytes]] = []
        self.peak = 0  # most that was held while a barrier was acted on
        seal, alloc = e.store.seal, e.store.sealed_arena.alloc

        def watched(*args: Any) -> None:
            gc.collect()
            before = read(e)
            seal(*args)
            gc.collect()
            self.seen.append((before, read(e)))

        def counted(n: int) -> Any:
            ids = alloc(n)
            self.peak = max(self.peak, read(e).held)
            return ids

        monkeypatch.setattr(e.store, "seal", watched)
        monkeypatch.setattr(e.store.sealed_arena, "alloc", counted)


def text(n: int = N_PROMPT, seed: int = 0) -> tuple[int, ...]:
    """n token ids of the bundled model, look-ups like those it was made for."""
    r = random.Random(seed)
    lines = "".join(f"entry {r.randrange(10000)}: {r.randrange(1000, 9999)}\n" for _ in range(n))
    return tuple(tiny_tokenizer().encode("Registry:\n" + lines)[:n])


def tiny_tokenizer() -> Any:
    from pronghorn.llm import BUNDLED
    from pronghorn.model.tokenizer import load_tokenizer

    return load_tokenizer(BUNDLED / "pronghorn-tiny", {})


@pytest.fixture
def tiny() -> Iterator[Any]:
    """Engines on the bundled model; all they hold is given back in the end."""
    made: list[LLM] = []

    def make(*use: str) -> Engine:
        made.append(LLM(use=use, threads=1, defaults=("match",)))
        return made[-1].engine

    yield make
    for llm in made:
        llm.close()
        assert llm.engine.store.held == 0
        assert llm.engine.store.reserved == 0


def finish(e: Engine, seqs: Sequence[Seq]) -> None:
    while not all(s.finish for s in seqs):
        e.step()


def run(e: Engine, ids: Sequence[int], n: int = 10, **options: Any) -> tuple[list[int], list[float]]:
    """New tokens and the log-probability of each."""
    seqs = e.submit(Request(tuple(ids), n, ignore_eos=True, logprobs=True, **options))
    finish(e, seqs)
    return list(seqs[0].new), list(seqs[0].logprobs)


# ------------------------------------------------------------------------------- snapkv


def test_snapkv_holds_64_rows_of_each_head(tiny: Any, monkeypatch: pytest.MonkeyPatch):
    e = tiny(f"snapkv:budget={BUDGET}")
    watch = Watch(e, monkeypatch)
    (seq,) = e.submit(Request(text(), 10, ignore_eos=True))
    e.step()
    ((whole, after),) = watch.seen
    # as run: 1,000 rows exact and open; then 64 of each head, and never more than both together
    assert (whole.open, whole.sealed) == (FULL_PAGES * ALL * HEAD_PAGE, 0)
    assert (after.open, after.sealed) == (0, 4 * ALL * HEAD_PAGE)
    assert watch.peak == whole.held + after.held
    for s in seq.kv.sealed:
        assert (len(s.blocks), s.n) == (BUDGET // PAGE, BUDGET)
    # slabs are given back: what remains reserved is less than two slabs above what is held, per arena
    assert whole.reserved >= whole.held
    assert after.reserved < whole.reserved / 3
    assert after.reserved <= after.held + 2 * 256 * 1024
    # the kept rows are all that is read from then on, and the answer's rows come on top
    finish_at = seq.n_prompt + 9
    while seq.n_new < 10 and not seq.finish:
        held = read(e)
        assert held.sealed == after.sealed
        assert held.open == (ALL * HEAD_PAGE if seq.kv.n_open else 0)
        e.step()
    assert len(seq.tokens) == finish_at + 1
    assert read(e).held == 0
    # the receipt: pages as held at the end, and the tables and positions beside them
    pages = 4 * ALL * HEAD_PAGE + ALL * HEAD_PAGE
    assert pages <= seq.kv_bytes < pages * 1.1


@pytest.mark.parametrize("budget", [N_PROMPT, 4096])
def test_snapkv_with_a_full_budget_is_the_identity(tiny: Any, budget: int):
    got, want = run(tiny(f"snapkv:budget={budget}"), text()), run(tiny(), text())
    assert got == want  # tokens and log-probabilities, to the last bit
    small = run(tiny(f"snapkv:budget={BUDGET}"), text())
    assert small[1] != want[1]  # a budget that bites shows


@pytest.mark.skipif(not SMAPS.exists(), reason="this system does not tell a process's resident memory")
def test_dropped_rows_leave_the_process(monkeypatch: pytest.MonkeyPatch):
    """On a model with KV large enough to see: 8 KiB a row and 3,000 rows. The C library's heap must not
    keep the slabs, also not after a large array was freed."""
    large = np.ones(24 << 20, np.uint8)
    del large
    e = engine(
        ["match", f"snapkv:budget={BUDGET}"], "native", num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=8, hidden_size=256, intermediate_size=256,
    )  # fmt: skip
    watch = Watch(e, monkeypatch)
    finish(e, e.submit(Request(prompt(3000), 10, ignore_eos=True)))
    ((before, after),) = watch.seen
    row = 4 * 8 * 32 * 2 * 4  # layers, heads, dim, keys and values, float32
    assert before.open == 3008 * row
    assert after.sealed == BUDGET * row
    freed = before.reserved - after.reserved
    assert freed > 0.95 * (before.open - after.sealed)
    assert before.resident - after.resident == pytest.approx(freed, rel=0.15)
    e.close()
    assert e.store.reserved == 0


# ------------------------------------------------------------------------------- formats


def test_int8_holds_what_it_says(tiny: Any):
    """One byte a number and two scales of four bytes a row: 72 bytes where bfloat16 takes 128."""

    def prompt_held(*use: str) -> Bytes:
        e = tiny(*use)
        (seq,) = e.submit(Request(text(), 10, ignore_eos=True))
        e.step()
        held = read(e)
        assert seq.kv.length == N_PROMPT
        e.cancel(seq)
        assert read(e).held == 0
        return held

    plain, int8, wide = prompt_held(), prompt_held("kvfmt.int8"), prompt_held("kvfmt.fp32")
    assert (plain.open, plain.sealed) == (FULL_PAGES * ALL * HEAD_PAGE, 0)
    assert (int8.open, int8.sealed) == (0, FULL_PAGES * ALL * PAGE * (2 * DIM + 2 * 4))
    assert int8.held / plain.held == 72 / 128
    assert wide.held == 2 * plain.held


def test_quest_adds_its_bounds(tiny: Any):
    """Memory rises by the smallest and largest of each channel, bfloat16: 128 bytes a page of 2,048."""
    e = tiny("quest")
    (seq,) = e.submit(Request(text(), 10, ignore_eos=True))
    e.step()
    assert read(e).sealed == FULL_PAGES * ALL * (HEAD_PAGE + 2 * DIM * 2)
    e.cancel(seq)


# ------------------------------------------------------------------------------- sharing


def test_branches_share_the_prompt(tiny: Any):
    """Five answers of 20 tokens: the prompt once, and each its own last page and answer."""
    e = tiny("best-of-n:n=5")
    seqs = e.submit(Request(text(), 20, 0.8, ignore_eos=True))
    most = 0
    while not all(s.finish for s in seqs):
        e.step()
        if all(s.n_new == 15 for s in seqs):
            assert len({tuple(s.new) for s in seqs}) > 1
            shared = set.intersection(*(set(s.kv.open.tolist()) for s in seqs))
            assert len(shared) == N_PROMPT // PAGE
        most = max(most, read(e).held)
    block = ALL * HEAD_PAGE
    one = -(-(N_PROMPT + 20) // PAGE) * block
    # 62 whole pages once; of the page that the prompt ends in and of the next, one for each branch
    assert most <= (N_PROMPT // PAGE + 5 * 2) * block
    assert most < 1.3 * one
    assert read(e).held == 0


def test_a_reused_prefix_adds_only_what_is_new(tiny: Any):
    e = tiny("prefix")
    ids = text()
    run(e, ids)
    stored = read(e).held  # prompt and answer, kept for the next
    assert stored == -(-(N_PROMPT + 9) // PAGE) * ALL * HEAD_PAGE
    again = (*ids[:960], *text(50, seed=1))  # 60 whole pages shared
    (seq,) = e.submit(Request(again, 10, ignore_eos=True))
    e.step()
    assert seq.counts.reused == 960
    new_pages = -(-(len(again) - 960) // PAGE)
    assert read(e).held == stored + new_pages * ALL * HEAD_PAGE
    finish(e, [seq])


def test_two_that_share_a_prefix_with_dropping_keep_their_own(tiny: Any):
    """Dropping writes new pages: what is stored for reuse stays whole."""
    e = tiny("prefix", f"snapkv:budget={BUDGET}")
    first = run(e, text())
    stored = read(e).held
    second = run(e, text())
    assert second == first
    assert read(e).held == stored


# ------------------------------------------------------------------------------- everything comes back


def test_slabs_return_in_any_order():
    """Blocks freed in random order: a slab is held while one of its blocks is, and no longer."""
    from pronghorn.ops.ref import Ops

    arena = Arena(Ops("float32"), 4096)
    ids = arena.alloc(1000)
    order = np.random.default_rng(0).permutation(ids)
    left = set(ids.tolist())
    for i in range(0, 1000, 50):
        arena.drop(order[i : i + 50])
        left -= set(order[i : i + 50].tolist())
        assert arena.held == len(left) * 4096
        assert arena.reserved == len({b // arena.per_slab for b in left}) * arena.per_slab * 4096
    assert arena.reserved == 0
    assert len(arena.alloc(1000)) == 1000


@pytest.mark.parametrize(
    "use",
    [(), ("kvfmt.int8",), ("quest",), ("snapkv:budget=64",), ("prefix",), ("streaming-llm:window=200",)],
)
def test_nothing_is_left_after_many_requests(tiny: Any, use: tuple[str, ...]):
    """Finished, cancelled and refused requests give back all; the fixture asserts it after closing."""
    e = tiny(*use)
    for i in range(3):
        seqs = [e.submit(Request(text(300 + 40 * i + j, i), 12, ignore_eos=True))[0] for j in range(3)]
        for _ in range(4):
            e.step()
        e.cancel(seqs[1])
        finish(e, seqs)
    assert not e.running
    assert not e.waiting
