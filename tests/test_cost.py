"""What a step costs, learned: right on machines whose cost is known, steady under outliers, consistent."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pronghorn.calibrate.steps import calibrate, calibrate_drafts
from pronghorn.cost import KNOTS, StepCost, reads
from pronghorn.engine import Engine
from pronghorn.llm import LLM
from pronghorn.ops.cpu import _native
from pronghorn.seq import Request
from tests.cost_by_numpy import fit
from tests.engines import engine, prompt

MACHINES = {
    "laptop": lambda rows, read: 2e-4 + 1e-3 * max(1.0, rows / 10) + 1e-7 * read,
    "large": lambda rows, read: 0.4 * max(1.0, rows / 16) + 3e-6 * read,
    "accelerator": lambda rows, read: 5e-3 + 2e-5 * max(0, rows - 300) + 1e-9 * read,
    "no attention": lambda rows, read: 1e-3 + 1e-4 * rows,
}


def steps(n: int, seed: int = 0) -> list[tuple[int, int]]:
    """Rows and reads as a server has them: answers in contexts of all lengths, and prompts in chunks."""
    r = np.random.default_rng(seed)
    out = []
    for i in range(n):
        if i % 3:
            rows = int(r.integers(1, 33))
            out.append((rows, rows * int(r.integers(50, 2000))))
        else:
            rows = int(2 ** r.uniform(0, 10))
            out.append((rows, reads(rows, int(r.integers(0, 3000)))))
    return out


def errors(cost: StepCost, machine: object, seed: int = 1) -> np.ndarray:
    held_out = steps(200, seed)
    return np.array([abs(cost.predict(*s) / machine(*s) - 1) for s in held_out])  # type: ignore[operator]


@pytest.mark.parametrize("name", MACHINES)
def test_learns_a_machine(name: str) -> None:
    cost = StepCost()
    for s in steps(400):
        cost.observe(*s, MACHINES[name](*s))
    off = errors(cost, MACHINES[name])
    assert np.median(off) < 0.02
    assert np.percentile(off, 95) < 0.1


@pytest.mark.parametrize("name", MACHINES)
def test_outliers_move_it_little(name: str) -> None:
    """A tenth of the steps take three times as long, a twentieth ten times; all are off by some 10 %."""
    r = np.random.default_rng(2)
    cost = StepCost()
    for s in steps(600):
        slow = r.choice([1, 3, 10], p=[0.85, 0.1, 0.05])
        cost.observe(*s, MACHINES[name](*s) * slow * np.exp(0.1 * r.normal()))
    off = errors(cost, MACHINES[name])
    assert np.median(off) < 0.08
    assert np.percentile(off, 95) < 0.25


def test_follows_a_machine_that_changes() -> None:
    machine = MACHINES["laptop"]
    cost = StepCost()
    for s in steps(300):
        cost.observe(*s, machine(*s))
    for s in steps(900, 3):
        cost.observe(*s, 2 * machine(*s))
    off = np.array([cost.predict(*s) / (2 * machine(*s)) - 1 for s in steps(200, 4)])
    assert np.median(np.abs(off)) < 0.05


def test_few_sizes_are_enough_to_begin_with() -> None:
    """After steps of 1, 8, 64 and 256 rows and two long ones, others are not far off."""
    for name in ("laptop", "large"):
        machine, cost = MACHINES[name], StepCost()
        for rows, context in ((1, 0), (8, 0), (64, 0), (256, 0), (1, 1024), (64, 1024)):
            read = reads(rows, context)
            cost.observe(rows, read, machine(rows, read))
        for rows in (1, 4, 32, 128, 512):
            for context in (0, 300, 2000):
                read = reads(rows, context)
                assert 0.7 < cost.predict(rows, read) / machine(rows, read) < 1.5


def test_one_step_seen_is_no_licence() -> None:
    """Beyond the sizes seen a step is taken to cost in proportion, so a first chunk is not vast."""
    cost = StepCost()
    cost.observe(1, 1, 0.4)
    assert cost.predict(4, 4) == pytest.approx(0.4, rel=0.01)
    assert cost.predict(80, 80) == pytest.approx(4.0, rel=0.05)
    assert cost.rows_within(1.0, 0, 0, 0) <= 24


def test_nothing_seen_costs_nothing() -> None:
    cost = StepCost()
    assert cost.predict(100, 1000) == 0.0
    assert cost.rows_within(0.1, 0, 0, 0) == KNOTS[-1]
    cost.observe(0, 0, 1.0)
    cost.observe(1, 1, 0.0)
    assert cost.predict(1, 1) == 0.0


SEEN = st.lists(
    st.tuples(st.integers(1, 6000), st.integers(0, 4000), st.floats(1e-5, 10.0)), min_size=1, max_size=40
)


@given(SEEN, st.integers(0, 300), st.integers(0, 100_000), st.integers(0, 3000), st.floats(1e-5, 5.0))
@settings(max_examples=100, deadline=None)
def test_consistent_whatever_was_seen(
    seen: list[tuple[int, int, float]], rows: int, read: int, context: int, seconds: float
) -> None:
    """Never falls in rows or reads, finite, and `rows_within` is the most rows that `predict` allows."""
    cost = StepCost()
    for n, each, took in seen:
        cost.observe(n, n * each, took)
    at = [cost.predict(n, read) for n in range(0, 6000, 37)]
    assert all(np.isfinite(at))
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(at))
    assert cost.predict(8, read + 1000) >= cost.predict(8, read) >= 0
    n = cost.rows_within(seconds, rows, read, context)
    assert 0 <= n <= KNOTS[-1]
    if n:
        assert cost.predict(rows + n, read + reads(n, context)) <= seconds
    if rows + n < KNOTS[-1]:
        assert cost.predict(rows + n + 1, read + reads(n + 1, context)) > seconds


@given(SEEN, st.integers(0, 3000), st.integers(0, 3000))
@settings(max_examples=50, deadline=None)
def test_prefill_is_its_steps(seen: list[tuple[int, int, float]], rows: int, context: int) -> None:
    cost = StepCost()
    for n, each, took in seen:
        cost.observe(n, n * each, took)
    at, total = 0, 0.0
    while at < rows:
        n = min(512, rows - at)
        total += cost.predict(n, reads(n, context + at))
        at += n
    assert cost.prefill(rows, context) == pytest.approx(total, rel=1e-6, abs=1e-12)


def test_reads_counts_each_row_and_what_is_before_it() -> None:
    assert reads(1, 0) == 1
    assert reads(3, 10) == 11 + 12 + 13
    assert reads(0, 50) == 0


@pytest.mark.parametrize("measure", [calibrate, calibrate_drafts])
@pytest.mark.parametrize("use", [[], ["kvfmt.int8"], ["quest:tokens=48,dense_layers=0"]])
def test_calibration_leaves_nothing_and_changes_no_answer(
    use: list[str], measure: Callable[[Engine], None]
) -> None:
    plain = engine(use, "native")
    ((want, *_),) = plain.run([Request(prompt(80, 5), 12)])
    e = engine(use, "native")
    e.cost = StepCost()
    measure(e)
    assert e.store.held == 0
    assert 0 < e.cost.predict(1, 1) < e.cost.predict(256, reads(256)) < 60
    ((got, *_),) = e.run([Request(prompt(80, 5), 12)])
    assert got.new == want.new


@pytest.mark.parametrize("measure", [calibrate, calibrate_drafts])
def test_calibration_ends_early_where_steps_are_slow(measure: Callable[[Engine], None]) -> None:
    e = engine([], "native")
    e.cost = StepCost()
    ran: list[int] = []
    run = e.runner.run

    def slow(rows: object, kvs: object, taps: bool) -> object:
        ran.append(rows.n)  # type: ignore[attr-defined]
        time.sleep(0.3)
        return run(rows, kvs, taps)  # type: ignore[arg-type]

    e.runner.run = slow  # type: ignore[method-assign,assignment]
    measure(e)
    assert len(ran) <= 3
    assert set(ran) == {1}
    assert e.cost.predict(1, 1) > 0.25
    assert e.store.held == 0


def test_rows_of_drafts_are_booked_with_what_they_read_and_without_what_is_not_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A plan takes a draft's row to read the text before it: steps that the price is learned from must too.
    Drafting, learning from drafts and ending a sequence take a second each here."""
    e = engine(["prompt-lookup"], "native")
    now, late, seen, steps = time.perf_counter, 0.0, list[tuple[int, int, float]](), list[tuple[int, int]]()
    monkeypatch.setattr(time, "perf_counter", lambda: now() + late)

    def slowly(owner: Any, name: str) -> None:
        does = getattr(owner, name)

        def slow(*args: Any) -> Any:
            nonlocal late
            late += 1.0
            return does(*args)

        monkeypatch.setattr(owner, name, slow)

    drafter = type(e.methods.draft)
    for owner, name in ((drafter, "propose"), (drafter, "observe"), (e, "_end")):
        slowly(owner, name)
    monkeypatch.setattr(e.cost, "observe", lambda *step: seen.append(step))
    run = e.runner.run

    def noted(rows: Any, kvs: Any, taps: bool) -> Any:
        steps.append((rows.n, kvs[0].length))
        return run(rows, kvs, taps)

    monkeypatch.setattr(e.runner, "run", noted)
    e.run([Request((1, 2, 3, 4) * 8, 24, ignore_eos=True)])
    assert late >= 2 * len(seen) and max(rows for rows, *_ in seen[1:]) > 4
    assert all(seconds < 1.0 for *_, seconds in seen)
    for (n, had), (rows, read, _) in zip(steps, seen, strict=True):
        known = 1 if had else 32
        assert n == rows and read == reads(known, had) + (n - known) * (had + known)


@pytest.mark.parametrize(("draft", "known"), [("auto", True), ("prompt-lookup", False)])
def test_who_plans_by_costs_finds_them_known(draft: str, known: bool) -> None:
    llm = LLM(use=[f"draft.{draft}"])
    one, many = (llm.engine.cost.predict(n, n * 100) for n in (1, 16))
    assert (one > 0) == known
    assert not known or one < many < 15 * one
    assert llm.engine.store.held == 0
    llm.close()


def test_steps_take_the_place_of_trials_of_their_size() -> None:
    """At once, whatever fits to trials took; what no step had the size of is still as tried."""
    cost = StepCost()
    for n, seconds in ((1, 1e-4), (8, 3e-4), (16, 5e-4)):
        cost.suppose(n, n * 100, seconds)
        assert cost.predict(n, n * 100) == pytest.approx(seconds, rel=0.05)
    for i in range(4):
        assert cost.seen(1) == i and cost.predict(1, 100) < 1.5e-4
        cost.observe(1, 100, 2e-4)
    assert cost.predict(1, 100) == pytest.approx(2e-4, rel=0.05)
    assert cost.predict(16, 1600) == pytest.approx(5e-4, rel=0.05)
    for _ in range(4):
        cost.observe(8, 800, 6e-4)
    assert cost.predict(8, 800) == pytest.approx(6e-4, rel=0.05)


def test_one_slow_step_of_a_size_is_not_believed() -> None:
    """Nothing else would show the mistake: who plans by it never runs that size again."""
    cost = StepCost()
    for i in range(8):
        cost.observe(1, 100 + i, 1e-3)
        cost.observe(2, 200 + i, 1.1e-3)
    cost.observe(4, 400, 20e-3)
    for i in range(8):
        cost.observe(1, 108 + i, 1e-3)
    assert cost.predict(4, 400) < 3e-3
    for _ in range(12):
        cost.observe(4, 400, 20e-3)
    assert cost.predict(4, 400) > 15e-3


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("n", [1, 2, 5, 40, 300])
def test_the_native_fit_is_that_of_numpy(machine: str, n: int) -> None:
    r, price = np.random.default_rng(n), 0.0
    seen = [(rows, read, MACHINES[machine](rows, read) * r.lognormal(0, 0.2)) for rows, read in steps(n, n)]
    for _ in range(3):
        want, priced = fit(np.array(seen), price)
        got = _native.fit_steps(seen, price)
        assert got[0] == pytest.approx(want, rel=1e-4)
        assert got[1] == pytest.approx(priced, rel=1e-4, abs=1e-13)
        price = priced


@pytest.mark.parametrize("wrong", [(0, 1, 1.0), (1, -1, 1.0), (1, 1, 0.0), (1, 1, float("nan"))])
def test_steps_that_cannot_be_are_refused(wrong: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="step"):
        _native.fit_steps([wrong], 0.0)
