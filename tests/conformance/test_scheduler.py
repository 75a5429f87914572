"""Every scheduler: within its room, always forward, and everybody served in the end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pronghorn.errors import MethodError
from pronghorn.methods.sched.fcfs import Fcfs
from pronghorn.seq import Seq
from pronghorn.slots import Room
from tests.conformance import _find
from tests.conformance._rig import sequence

NAMES = _find.names("sched")


def fresh(number: int, n_prompt: int, max_tokens: int) -> Seq:
    return sequence(
        list(range(n_prompt)), kv=SimpleNamespace(length=0, n_rows=0), number=number, max_tokens=max_tokens
    )


def serve(scheduler: Any, requests: list[tuple[int, int]], rows: int, kv_rows: int) -> list[list[Any]]:
    """Run to the end as the engine does; returns each step's (id, rows)."""
    waiting = [fresh(i, n, m) for i, (n, m) in enumerate(requests)]
    running: list[Seq] = []
    steps = []
    while waiting or running:
        room = Room(rows, kv_rows - sum(s.held for s in running))
        plan = scheduler.plan(waiting, running, room)
        assert list(plan.admit) == waiting[: len(plan.admit)] or set(plan.admit) <= set(waiting)
        waiting = [s for s in waiting if s not in plan.admit]
        running += plan.admit
        assert sum(s.need for s in running) <= kv_rows
        assert plan.rows, "no progress"
        assert sum(n for _, n in plan.rows) <= rows
        assert len({s.id for s, _ in plan.rows}) == len(plan.rows)
        for seq, n in plan.rows:
            assert seq in running
            assert 1 <= n <= len(seq.tokens) - seq.kv.length
            seq.kv.length = seq.kv.n_rows = seq.kv.length + n
            if seq.kv.length == len(seq.tokens):
                seq.tokens.append(0)
        steps.append([(s.id, n) for s, n in plan.rows])
        running = [s for s in running if s.n_new < s.request.max_tokens]
        assert len(steps) < 20_000
    return steps


@pytest.mark.parametrize("name", NAMES)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=12),
    st.integers(1, 50),
    st.integers(80, 300),
)
@settings(max_examples=100, deadline=None)
def test_everybody_is_served(name: str, requests: list[tuple[int, int]], rows: int, kv: int) -> None:
    steps = serve(_find.defaults("sched", name), requests, rows, kv)
    for i, (n_prompt, max_tokens) in enumerate(requests):
        assert sum(n for step in steps for j, n in step if j == i) == n_prompt + max_tokens - 1


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_do_is_an_empty_plan(name: str) -> None:
    plan = _find.defaults("sched", name).plan([], [], Room(100, 100))
    assert plan.admit == ()
    assert plan.rows == ()


def test_fcfs_a_long_prompt_delays_no_answer() -> None:
    """Answers under way get a row in every step while a long prompt is run in chunks."""
    steps = serve(Fcfs(rows=64, chunk=16), [(4, 40), (4, 40), (300, 2)], 64, 10_000)
    for step in steps[1:19]:
        assert {0, 1, 2} <= {i for i, _ in step}
        assert max(n for _, n in step) <= 16


def test_fcfs_starts_in_order_of_arrival() -> None:
    """A small request does not overtake a large one that has to wait for room."""
    steps = serve(Fcfs(), [(50, 20), (60, 30), (1, 1)], 512, 100)
    first = [min(i for i, step in enumerate(steps) if any(j == k for j, _ in step)) for k in range(3)]
    assert first[0] < first[1] <= first[2]


def test_fcfs_limits_who_is_under_way() -> None:
    steps = serve(Fcfs(max_running=2), [(3, 5)] * 6, 512, 10_000)
    assert max(len(step) for step in steps) == 2


def test_fcfs_alone_starts_though_room_is_short() -> None:
    """With nothing under way there is nothing to wait for."""
    plan = Fcfs().plan([fresh(0, 10, 50)], [], Room(64, 20))
    assert len(plan.admit) == 1
    assert plan.rows


@pytest.mark.parametrize("bad", [{"rows": 0}, {"chunk": 0}, {"max_running": 0}])
def test_fcfs_ranges(bad: dict[str, int]) -> None:
    with pytest.raises(MethodError, match=next(iter(bad))):
        Fcfs(**bad)
