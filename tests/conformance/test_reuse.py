"""Every reuse method: a prompt that starts from stored rows continues as if it had run them, and
everything taken is given back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pronghorn.errors import MethodError
from pronghorn.kv.store import SeqKV
from pronghorn.methods.reuse.prefix import Prefix
from tests.conformance import _find
from tests.conformance._rig import N_VOCAB, Small, small

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
    run.ids = ids  # type: ignore[attr-defined]
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


class Fake:
    """A `SeqKV` of which only the lengths matter."""

    def __init__(self, length: int, sealed: int = 0, dropped: bool = False) -> None:
        self.length, self.n_sealed, self.dropped, self.freed = length, sealed, dropped, 0

    def free(self) -> None:
        self.freed += 1


def kv(fake: Fake) -> SeqKV:
    return fake  # type: ignore[return-value]


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 1), max_size=12), st.integers(0, 12)), max_size=8),
    st.lists(st.integers(0, 1), max_size=14),
)
@settings(max_examples=300, deadline=None)
def test_prefix_finds_the_longest(states: list[tuple[list[int], int]], prompt: list[int]) -> None:
    """Against a scan over every state ever offered: dropping covered ones loses nothing."""
    grid, method, rows = 4, Prefix(), max(len(prompt) - 1, 0)
    best = 0
    for ids, sealed in states:
        sealed = min(sealed // grid * grid, len(ids))
        method.store(ids, kv(Fake(len(ids), sealed)), grid)
        n = 0
        while n < min(len(ids), rows) and ids[n] == prompt[n]:
            n += 1
        best = max(best, n if n >= sealed else n // grid * grid)
    span = method.match(prompt, rows)
    assert (span.n if span else 0) == best


def test_prefix_keeps_no_state_that_dropped_rows() -> None:
    method, fake = Prefix(), Fake(9, dropped=True)
    method.store(IDS[:9], kv(fake), 4)
    assert fake.freed == 1
    assert method.match(IDS, 59) is None


def test_prefix_forgets_what_was_used_longest_ago() -> None:
    method = Prefix(rows=20)
    a, b, c = Fake(9), Fake(9), Fake(9)
    method.store([1] * 9, kv(a), 4)
    method.store([2] * 9, kv(b), 4)
    assert method.match([1] * 10, 9)
    method.store([3] * 9, kv(c), 4)
    assert (a.freed, b.freed, c.freed) == (0, 1, 0)
    big = Fake(21)
    method.store([4] * 21, kv(big), 4)
    assert big.freed == 1
    method.close()
    assert (a.freed, b.freed, c.freed) == (1, 1, 1)


def test_prefix_range() -> None:
    with pytest.raises(MethodError, match="rows"):
        Prefix(rows=0)
