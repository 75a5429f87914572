"""Every reuse method: a prompt that starts from stored rows continues as if it had run them, and
everything taken is given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pronghorn.errors import MethodError
from pronghorn.kv.layout import PAGE
from pronghorn.kv.store import Store
from pronghorn.methods.reuse.prefix import Prefix
from pronghorn.types import KVPlan
from tests.conformance import _find
from tests.conformance._rig import N_VOCAB, Small, small
from tests.states import GRID, make, state

NAMES = _find.names("reuse")
IDS = np.random.default_rng(4).integers(0, N_VOCAB, 60).tolist()


def offer(run: Small, method: Any, n: int, grid: int = 16) -> None:
    """What the core does at the end of a prompt: a fork of the first n rows."""
    fork = run.store.fork(run.kv)
    run.store.cut(fork, n)
    method.store(tuple(run.ids[:n]), fork, grid)


def started(ids: list[int], seal_every: int = 0, like: Small | None = None) -> Small:
    run = Small(like.bound if like else small())
    if like:
        run.store, run.runner = like.store, like.runner
        run.kv = run.store.new()
    run.seal_every = seal_every
    run.feed(ids, len(ids))
    return run


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seal_every", [0, 16])
@pytest.mark.parametrize("common", [5, 30, 47, 60])
def test_continues_as_if_it_had_run(name: str, seal_every: int, common: int) -> None:
    method = _find.defaults("reuse", name)
    a = started(IDS, seal_every)
    offer(a, method, len(IDS))
    prompt = [*IDS[:common], *[(t + 1) % N_VOCAB for t in IDS[common:]], 1, 2, 3]
    span = method.match(prompt, len(prompt) - 1)
    want = started(prompt, seal_every, a)
    if span is None:
        assert common < 16, "a whole grid step is common and nothing was offered"
        return
    assert span.at == 0
    assert 0 < span.n <= common
    b = Small(a.bound)
    b.store, b.runner, b.seal_every = a.store, a.runner, seal_every
    b.kv = a.store.fork(span.kv)
    b.store.cut(b.kv, span.n)
    got = b.feed(prompt[span.n :], len(prompt))
    assert got[-1] == pytest.approx(Small(a.bound).feed(prompt, len(prompt))[-1], abs=1e-9)
    assert b.kv.n_sealed == want.kv.n_sealed
    for layer in range(3):
        for x, y in zip(a.store.read_open(b.kv, layer, 1, len(b.kv.open)),
                        a.store.read_open(want.kv, layer, 1, len(want.kv.open)), strict=True):  # fmt: skip
            assert x[: b.kv.n_open] == pytest.approx(y[: b.kv.n_open], abs=1e-9)
    for s in (a, b, want):
        s.kv.free()
    assert a.store.held > 0, "the state is still held"
    method.close()
    assert a.store.held == 0
    assert method.match(prompt, len(prompt) - 1) is None


@pytest.mark.parametrize("name", NAMES)
def test_the_last_row_is_left_to_run(name: str) -> None:
    method = _find.defaults("reuse", name)
    a = started(IDS)
    offer(a, method, len(IDS))
    span = method.match(IDS, len(IDS) - 1)
    assert span is None or span.n <= len(IDS) - 1
    for rows in (0, -5):
        assert method.match(IDS, rows) is None
    assert method.match([], 0) is None
    method.close()


@pytest.mark.parametrize("name", NAMES)
def test_an_offer_is_always_taken_over(name: str) -> None:
    """Kept or not, the method frees what it was handed."""
    method = _find.defaults("reuse", name)
    a = started(IDS)
    for n in (0, 7, 60, 60, 33):
        offer(a, method, n)
    a.kv.free()
    method.close()
    assert a.store.held == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_one_is_like_it_and_apart(name: str) -> None:
    method = _find.defaults("reuse", name)
    a, b = started(IDS), started(IDS)
    offer(a, method, 60)
    other = method.fresh()
    assert type(other) is type(method)
    other.open(b.store, "", lambda rows, context: 1e-3 * rows)
    assert other.match(IDS, 59) is None
    offer(b, other, 60)
    span = other.match(IDS, 59)
    assert span is None or span.kv.store is b.store
    method.close()
    assert a.store.held_by([a.kv]) == a.store.held
    other.close()
    assert b.store.held_by([b.kv]) == b.store.held


def test_a_fresh_prefix_has_the_options_and_no_disk(tmp_path: Path) -> None:
    assert Prefix(gb=0.5, disk=str(tmp_path)).fresh() == Prefix(gb=0.5)


def put(method: Prefix, store: Store, ids: list[int], sealed: int = 0) -> None:
    method.store(ids, state(store, ids, sealed), GRID)


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 1), max_size=70), st.integers(0, 2)), max_size=6),
    st.lists(st.integers(0, 1), max_size=80),
)
@settings(max_examples=100, deadline=None)
def test_prefix_finds_the_longest(states: list[tuple[list[int], int]], prompt: list[int]) -> None:
    """Against a scan over every state ever offered."""
    method, store, rows = Prefix(), make(), max(len(prompt) - 1, 0)
    best = 0
    for ids, seals in states:
        sealed = min(seals, len(ids) // GRID) * GRID
        put(method, store, ids, sealed)
        n = 0
        while n < min(len(ids), rows) and ids[n] == prompt[n]:
            n += 1
        best = max(best, n if n >= sealed else n // GRID * GRID)
    span = method.match(prompt, rows)
    assert (span.n if span else 0) == best
    method.close()
    assert store.held == 0


def test_prefix_keeps_no_state_that_dropped_rows() -> None:
    method, store = Prefix(), make()
    kv = state(store, IDS, GRID)
    store.seal(kv, KVPlan({0: np.arange(20, dtype=np.int32)}))
    assert kv.dropped
    method.store(IDS, kv, GRID)
    assert store.held == 0
    assert method.match(IDS, 59) is None


def opened(store: Store, **options: Any) -> Prefix:
    """A row takes a millisecond, and a microsecond more for each row before it."""
    method = Prefix(**options)
    method.open(store, "model", lambda rows, context: rows * (1e-3 + 1e-6 * context))
    return method


def test_prefix_forgets_what_nobody_asks_for() -> None:
    store = make()
    page = store.open_layout.block
    method = opened(store, gb=6 * page / (1 << 30))
    for t in (1, 2):
        put(method, store, [t] * 3 * PAGE)
    for _ in range(2):
        assert method.match([1] * 3 * PAGE, 3 * PAGE)
    for t in range(3, 9):
        put(method, store, [t] * 3 * PAGE)
        assert store.held <= 6 * page
        assert method.match([1] * 3 * PAGE, 3 * PAGE), "what was asked for stays"
    assert method.match([2] * 3 * PAGE, 3 * PAGE) is None
    for t in range(10, 40):
        put(method, store, [t] * 3 * PAGE)
    assert method.match([1] * 3 * PAGE, 3 * PAGE) is None, "and grows old"
    method.close()
    assert store.held == 0


def test_prefix_keeps_what_costs_more_to_compute_again() -> None:
    """Of two leaves alike in bytes and use, the one deeper in its text took longer."""
    store = make()
    method = opened(store)
    trunk = list(range(8 * PAGE))
    put(method, store, [99] * 2 * PAGE)
    put(method, store, [*trunk, *[7] * 2 * PAGE])
    put(method, store, [*trunk, *[8] * 2 * PAGE])
    assert method.shrink()
    assert method.match([99] * 40, 40) is None
    assert [n.rows for n in method.tree()] == [8 * PAGE, 2 * PAGE, 2 * PAGE]
    method.close()


def test_prefix_gives_up_nothing_that_running_sequences_hold() -> None:
    store = make()
    method = opened(store)
    put(method, store, [1] * 3 * PAGE)
    put(method, store, [2] * 3 * PAGE)
    span = method.match([1] * 3 * PAGE, 3 * PAGE)
    assert span is not None
    running = store.fork(span.kv)
    assert [n.users for n in sorted(method.tree(), key=lambda n: n.id)] == [1, 0]
    assert method.shrink()
    assert not method.shrink(), "what is left would free nothing"
    assert method.match([1] * 3 * PAGE, 3 * PAGE)
    running.free()
    assert method.shrink()
    assert not method.shrink()
    assert store.held == 0


def test_prefix_serves_one_engine() -> None:
    store = make()
    method = opened(store)
    put(method, store, [1] * 3)
    with pytest.raises(MethodError, match="another engine"):
        method.open(make(), "model", lambda rows, context: 0.0)
    method.close()


@pytest.mark.parametrize("options", [{"gb": -1.0}, {"disk_gb": 0.0}, {"gb": float("nan")}])
def test_prefix_ranges(options: dict[str, float]) -> None:
    with pytest.raises(MethodError, match="gb"):
        Prefix(**options)  # type: ignore[arg-type]
