"""Every scheduler: within its room, always forward, and everybody served in the end."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pronghorn.errors import MethodError
from pronghorn.methods.sched._prefixes import groups
from pronghorn.methods.sched.batch import Batch
from pronghorn.methods.sched.fcfs import Fcfs
from pronghorn.methods.sched.sarathi import Sarathi
from pronghorn.methods.sched.splitfuse import Splitfuse
from pronghorn.methods.sched.vtc import Vtc
from pronghorn.seq import Seq
from pronghorn.slots import Room
from tests.conformance import _find
from tests.conformance._serving import Machine, Served, fresh, laptop, learned

NAMES = _find.names("sched")
OPTIMISTIC = [n for n in NAMES if n != "fcfs"]
SIZES = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=12)
# prompt, new tokens, arrival in milliseconds, priority, deadline, user
CALLS = st.lists(
    st.tuples(
        st.integers(1, 60), st.integers(1, 40), st.integers(0, 100), st.integers(-1, 1),
        st.sampled_from([0.05, 0.5, float("inf")]), st.sampled_from("abc"),
    ),
    min_size=1, max_size=14,
)  # fmt: skip


def tight(name: str) -> Any:
    """With a small reserve, so that memory runs short."""
    return _find.classes("sched")[name](**({} if name == "fcfs" else {"reserve": 2}))


def calls(made: list[Any]) -> list[Seq]:
    return [
        fresh(i, n, m, at / 1e3, priority=priority, deadline=deadline, user=user)
        for i, (n, m, at, priority, deadline, user) in enumerate(made)
    ]


def rows_of(machine: Machine, number: int) -> int:
    return sum(n for step in machine.steps for i, n in step if i == number)


def p95(served: list[Served]) -> float:
    return float(np.percentile([s.latency for s in served], 95))


# ------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", NAMES)
@given(SIZES, st.integers(1, 50), st.integers(80, 300))
@settings(max_examples=60, deadline=None)
def test_everybody_is_served(name: str, requests: list[tuple[int, int]], rows: int, kv: int) -> None:
    machine = Machine(_find.defaults("sched", name), kv, rows, pages=name != "fcfs")
    machine.serve([fresh(i, n, m) for i, (n, m) in enumerate(requests)])
    for i, (n_prompt, max_tokens) in enumerate(requests):
        assert rows_of(machine, i) >= n_prompt + max_tokens - 1
        if i not in machine.preempted:
            assert rows_of(machine, i) == n_prompt + max_tokens - 1


@pytest.mark.parametrize("name", NAMES)
@given(CALLS, st.integers(1, 64), st.integers(112, 200))
@settings(max_examples=100, deadline=None)
def test_no_livelock_where_memory_is_short(name: str, made: Any, rows: int, kv: int) -> None:
    """Mixed priorities, deadlines, users and arrivals, in little more memory than one of them needs."""
    seqs = calls(made)
    machine = Machine(tight(name), kv, rows, pages=name != "fcfs")
    machine.serve(seqs, limit=6000)
    assert all(s.n_new == s.request.max_tokens for s in seqs)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_do_is_an_empty_plan(name: str) -> None:
    plan = _find.defaults("sched", name).plan([], [], Room(100, 100))
    assert plan.admit == plan.rows == plan.preempt == ()


@pytest.mark.parametrize("name", NAMES)
def test_alone_it_starts_though_room_is_short(name: str) -> None:
    """With nothing under way there is nothing to wait for."""
    plan = _find.defaults("sched", name).plan([fresh(0, 10, 50)], [], Room(64, 20))
    assert len(plan.admit) == 1
    assert plan.rows


@pytest.mark.parametrize("name", NAMES)
def test_works_before_anything_was_measured(name: str) -> None:
    """An empty cost model."""
    plan = _find.defaults("sched", name).plan([fresh(i, 100, 50) for i in range(3)], [], Room(4096, 10_000))
    assert len(plan.admit) == 3
    assert sum(n for _, n in plan.rows) == 300


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_is_cheap(name: str) -> None:
    """A thousand wait and 64 run. The fastest of some is taken, and the limit is wide of what it should be
    (below a millisecond), so that a busy machine does not fail it; a plan that is quadratic does."""
    scheduler = _find.defaults("sched", name)
    running = [fresh(i, 100, 500, user=f"u{i % 5}") for i in range(64)]
    for s in running:
        s.kv.length = 100
        s.tokens.append(0)
    waiting = [fresh(100 + i, 100, 500, i / 1e3, user=f"u{i % 7}") for i in range(1000)]
    cost = learned(laptop)
    spent = []
    for kv_rows in (100_000, 100_000, 100, 100) * 5:
        begin = time.perf_counter()
        scheduler.plan(waiting, running, Room(4096, kv_rows, cost))
        spent.append(time.perf_counter() - begin)
    assert min(spent[2:]) < 0.02


@pytest.mark.parametrize("name", OPTIMISTIC)
def test_more_run_than_could_all_reach_their_end(name: str) -> None:
    """What is held counts, not what may come: answers that end early leave nothing unused."""
    machine = Machine(_find.defaults("sched", name), kv_rows=2000)
    seqs = [fresh(i, 20, 1900, i / 1e6) for i in range(8)]
    for s in seqs:
        machine.waiting.append(s)
        machine.served[s.id] = Served(s)
    machine._step()
    assert len(machine.running) == 8


@pytest.mark.parametrize("name", OPTIMISTIC)
def test_memory_runs_short_and_the_last_gives_way(name: str) -> None:
    machine = Machine(_find.classes("sched")[name](reserve=1), kv_rows=300)
    served = machine.serve([fresh(i, 50, 100, i * 1e-4) for i in range(4)])
    assert machine.preempted
    assert 0 not in machine.preempted
    assert all(s.seq.n_new == 100 for s in served.values())
    assert max(s.seq.counts.preempted for s in served.values()) <= 6  # the reserve doubles each time


@pytest.mark.parametrize("name", [n for n in OPTIMISTIC if n != "batch"])
def test_priority_takes_a_place(name: str) -> None:
    """One of higher priority starts at once though all places are taken, and only there."""
    cls = _find.classes("sched")[name]
    low = [fresh(i, 20, 60, user="a") for i in range(6)]
    high = fresh(9, 20, 5, 0.01, priority=1, user="a")
    machine = Machine(cls(max_running=2))
    served = machine.serve([*low, high])
    assert len(machine.preempted) == 1
    assert served[9].latency < 0.05
    equal = Machine(cls(max_running=2))
    equal.serve([*(fresh(i, 20, 60, user="a") for i in range(6)), fresh(9, 20, 5, 0.01, user="a")])
    assert not equal.preempted


# ------------------------------------------------------------------------------- fcfs


def test_fcfs_a_long_prompt_delays_no_answer() -> None:
    """Answers under way get a row in every step while a long prompt is run in chunks."""
    machine = Machine(Fcfs(rows=64, chunk=16), 10_000, 64)
    machine.serve([fresh(i, n, m) for i, (n, m) in enumerate([(4, 40), (4, 40), (300, 2)])])
    for step in machine.steps[1:19]:
        assert {0, 1, 2} <= {i for i, _ in step}
        assert max(n for _, n in step) <= 16


def test_fcfs_starts_in_order_of_arrival() -> None:
    """A small request does not overtake a large one that has to wait for room."""
    machine = Machine(Fcfs(), 100, 512)
    machine.serve([fresh(i, n, m) for i, (n, m) in enumerate([(50, 20), (60, 30), (1, 1)])])
    first = [next(i for i, step in enumerate(machine.steps) if k in dict(step)) for k in range(3)]
    assert first[0] < first[1] <= first[2]


def test_fcfs_limits_who_is_under_way() -> None:
    machine = Machine(Fcfs(max_running=2), 10_000, 512)
    machine.serve([fresh(i, 3, 5) for i in range(6)])
    assert max(len(step) for step in machine.steps) == 2


# ------------------------------------------------------------------------------- sarathi, splitfuse


def test_sarathi_keeps_the_time_between_tokens() -> None:
    """While a prompt of 4,000 tokens arrives no answer waits longer than the target; it does where prompts
    run whole."""

    def work() -> list[Seq]:
        return [*(fresh(i, 20, 300) for i in range(4)), fresh(9, 4000, 5, 0.1)]

    served = Machine(Sarathi(tbt=0.03)).serve(work())
    assert max(max(served[i].gaps) for i in range(4)) <= 0.03 * 1.1
    whole = Machine(Fcfs(rows=4096, chunk=4096)).serve(work())
    assert max(max(whole[i].gaps) for i in range(4)) > 0.5


def test_sarathi_prompts_move_though_the_target_is_hopeless() -> None:
    machine = Machine(Sarathi(tbt=1e-6, least=16))
    machine.serve([fresh(0, 5, 400), fresh(1, 160, 5, 0.01)])
    assert [dict(step)[1] for step in machine.steps if 1 in dict(step)][:10] == [16] * 10


def test_sarathi_starts_no_more_than_have_their_tokens_in_time() -> None:
    """On this machine a step of 0.02 s has 80 rows, one of 0.01 s 40."""
    for tbt, most in ((0.02, 64), (0.01, 40)):
        machine = Machine(Sarathi(tbt=tbt))
        machine.serve([fresh(i, 4, 100) for i in range(80)])
        assert most - 4 <= max(len(step) for step in machine.steps) <= most


def test_sarathi_deadlines_go_first() -> None:
    """Of equals that wait, the one with the earliest deadline starts first."""
    seqs = [fresh(i, 20, 20, deadline=d) for i, d in enumerate((float("inf"), 9.0, 3.0, 5.0))]
    served = Machine(Sarathi(max_running=1)).serve(seqs)
    assert sorted(range(4), key=lambda i: served[i].end) == [2, 3, 1, 0]


def test_sarathi_deadlines_are_met_that_arrival_order_misses() -> None:
    def work() -> list[Seq]:
        slow = [fresh(i, 50, 100, i * 1e-4) for i in range(30)]
        return [*slow, *(fresh(50 + i, 50, 20, 0.1, deadline=0.6) for i in range(4))]

    def late(scheduler: Any) -> int:
        served = Machine(scheduler).serve(work())
        return sum(served[i].end > 0.6 for i in range(50, 54))

    assert late(Fcfs(max_running=8)) == 4
    assert late(Sarathi(max_running=8)) == 0


def test_splitfuse_steps_are_alike() -> None:
    """Under backlog nine steps of ten have N rows, to within 5 %."""
    machine = Machine(Splitfuse(rows=64))
    seqs = [fresh(i, 30 + 37 * i % 200, 8) for i in range(60)]
    machine.serve(seqs)
    sizes = [sum(n for _, n in step) for step in machine.steps]
    backlog = sizes[: int(len(sizes) * 0.9)]
    assert np.mean([61 <= n <= 64 for n in backlog]) >= 0.9


def test_splitfuse_takes_its_size_from_the_machine() -> None:
    def machine(rows: int, read: int) -> float:
        return 2e-3 + 1e-4 * rows  # 95 % of the best speed of 2048 rows is reached a little above 300

    cost = learned(machine)
    assert cost.saturation(2048) == 512
    plan = Splitfuse().plan([fresh(0, 3000, 5)], [], Room(4096, 10_000, cost))
    assert [n for _, n in plan.rows] == [512]


# ------------------------------------------------------------------------------- vtc


def shares(scheduler: Any, seconds: Any = laptop, kv_rows: int = 100_000) -> tuple[float, float]:
    """p95 latency of five short requests, alone and while another user has fifty long ones."""

    def short(at: float) -> list[Seq]:
        return [fresh(100 + i, 60, 40, at + 0.2 * i, user="short") for i in range(5)]

    quiet = Machine(type(scheduler)(), kv_rows, seconds=seconds).serve(short(0.5))
    long = [fresh(i, 400, 300, i * 1e-3, user="long") for i in range(50)]
    machine = Machine(scheduler, kv_rows, seconds=seconds)
    busy = machine.serve([*long, *short(0.5)])
    mine = [busy[100 + i] for i in range(5)]
    assert max(s.first for s in mine) < max(busy[i].end for i in range(50))  # amid the crowd
    return p95(list(quiet.values())), p95(mine)


@pytest.mark.parametrize("kv_rows", [100_000, 12_000])
def test_vtc_short_requests_beside_long_ones(kv_rows: int) -> None:
    """At most twice the latency of running alone, with places or memory taken."""
    quiet, busy = shares(Vtc(), kv_rows=kv_rows)
    assert busy <= 2 * quiet


def test_vtc_short_requests_on_other_machines() -> None:
    def even(rows: int, read: int) -> float:
        return 1e-3 + 5e-4 * rows + 1e-7 * read

    def slow(rows: int, read: int) -> float:
        return 0.06 * max(1.0, rows / 16) + 1e-6 * read

    for seconds in (even, slow):
        quiet, busy = shares(Vtc(), seconds)
        assert busy <= 2 * quiet


def test_without_users_short_requests_suffer() -> None:
    """What `vtc` is for: by arrival the short ones wait for the long."""
    quiet, busy = shares(Sarathi())
    assert busy > 2.5 * quiet


def test_vtc_users_get_equal_tokens() -> None:
    """Both have work all the time; one asks for three times as much at once."""
    count = {"a": 0, "b": 0}
    machine = Machine(Vtc(max_running=16))
    seqs = [fresh(i, 30, 50, user="a") for i in range(90)]
    seqs += [fresh(100 + i, 30, 50, user="b") for i in range(30)]
    served = machine.serve(seqs)
    half = max(served[100 + i].end for i in range(30)) * 0.8
    for s in served.values():
        if s.end and s.end <= half:
            count[s.seq.request.user] += 1
    assert count["b"] >= 10
    assert 0.6 <= count["a"] / count["b"] <= 1.67


def test_vtc_absence_saves_up_no_claim() -> None:
    """One user worked for long while the other was away; back again, they share, and nobody is shut out."""
    machine = Machine(Vtc(max_running=4))
    first = [fresh(i, 20, 40, user="a") for i in range(40)]
    served = machine.serve([*first, *(fresh(100 + i, 20, 40, 0.5, user="b") for i in range(40))])
    between = [s for s in served.values() if 0.6 < s.end < 1.2 and s.seq.request.user == "a"]
    assert between


def test_vtc_priority_is_above_fairness() -> None:
    served = Machine(Vtc(max_running=2)).serve(
        [
            *(fresh(i, 20, 40, user="a", priority=1) for i in range(10)),
            *(fresh(50 + i, 20, 40, user="b") for i in range(4)),
        ]
    )
    assert max(served[i].first for i in range(10)) < min(served[50 + i].end for i in range(4))


def test_vtc_alone_has_everything() -> None:
    """A user with nobody beside gets all places, as under `sarathi`."""

    def work() -> list[Seq]:
        return [fresh(i, 30, 50, user="a") for i in range(60)]

    fair, plain = Machine(Vtc()), Machine(Sarathi())
    fair.serve(work())
    plain.serve(work())
    assert fair.now <= plain.now * 1.05


def test_vtc_forgets_idle_users() -> None:
    machine = Machine(Vtc())
    machine.serve([fresh(i, 1, 1, i * 0.01, user=str(i)) for i in range(4200)])
    assert len(machine.scheduler._ledger.counter) < 4200
    assert not machine.scheduler._ledger.ran or len(machine.scheduler._ledger.ran) < 100


# ------------------------------------------------------------------------------- batch


def best(prompts: list[tuple[int, ...]], shortest: int) -> int:
    """The most rows that a partition into groups of one prefix each saves, by trying all prefixes that a
    group may have."""

    def saved(members: list[tuple[int, ...]], depth: int) -> int:
        if len(members) < 2:
            return 0
        whole = (len(members) - 1) * depth if depth >= shortest else 0
        by_next: dict[int, list[tuple[int, ...]]] = {}
        for p in members:
            by_next.setdefault(p[depth] if len(p) > depth else -1, []).append(p)
        ended = by_next.pop(-1, [])
        if not by_next:
            return whole
        below = sum(saved(m, depth + 1) for m in by_next.values())
        return max(whole, below + 0 * len(ended))

    return saved(prompts, 0)


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=7), min_size=1, max_size=12))
@example([[0, 0], [0, 0], [0, 0]])
@settings(max_examples=300, deadline=None)
def test_batch_groups_save_the_most(made: list[list[int]]) -> None:
    """Each letter stands for 16 tokens, so that every prefix is long enough for a group."""
    prompts = [tuple(t for letter in p for t in [letter] * 16) for p in made]
    found = groups(prompts)
    assert sorted(i for g in found for i in g.members) == list(range(len(prompts)))
    for g in found:
        assert len({prompts[i][: g.prefix] for i in g.members}) == 1
    assert sum(g.saved for g in found) == best(prompts, 16)


def test_batch_prefixes_run_as_a_block() -> None:
    """200 prompts over 10 prefixes, shuffled: each group is started without a break, and with the prefix
    found again all rows but one prefix to a group are new ones."""
    r = np.random.default_rng(0)
    heads = [r.integers(0, 99, 100).tolist() for _ in range(10)]
    prompts = [heads[i % 10] + r.integers(0, 99, 20).tolist() for i in range(200)]
    found = groups(prompts)
    assert sum(g.saved for g in found) == 10 * 19 * 100
    order: list[int] = []
    machine = Machine(Batch(max_running=8))
    machine.seen = lambda plan: order.extend(s.id for s in plan.admit)
    shuffled = r.permutation(200)
    machine.serve([fresh(int(i), prompts[i], 4) for i in shuffled])
    kinds = [i % 10 for i in order]
    assert sum(a != b for a, b in itertools.pairwise(kinds)) == 9


def test_batch_long_answers_go_first() -> None:
    order: list[int] = []
    machine = Machine(Batch(max_running=2))
    machine.seen = lambda plan: order.extend(s.id for s in plan.admit)
    machine.serve([fresh(i, [i] * 50, 10 + 7 * i % 40) for i in range(20)])
    wants = [10 + 7 * i % 40 for i in order]
    assert wants == sorted(wants, reverse=True)


def test_batch_ten_thousand_wait() -> None:
    """The order is made once; a step that starts nobody does not look at it."""
    r = np.random.default_rng(0)
    heads = [r.integers(0, 999, 300).tolist() for _ in range(50)]
    waiting = [fresh(i, heads[i % 50] + r.integers(0, 999, 30).tolist(), 20) for i in range(10_000)]
    scheduler = Batch(max_running=64)
    cost = learned(laptop)
    begin = time.perf_counter()
    plan = scheduler.plan(waiting, [], Room(4096, 50_000, cost))
    first = time.perf_counter() - begin
    running = list(plan.admit)
    rest = [s for s in waiting if s not in set(running)]
    begin = time.perf_counter()
    scheduler.plan(rest, running[:60], Room(4096, 50_000, cost))
    again = time.perf_counter() - begin
    assert again < first / 5


# ------------------------------------------------------------------------------- options

BAD = [
    *((Fcfs, {name: 0}) for name in ("rows", "chunk", "max_running")),
    *((cls, {name: 0}) for cls in (Sarathi, Vtc) for name in ("rows", "least", "max_running", "reserve")),
    *((cls, {"tbt": 0.0}) for cls in (Sarathi, Vtc)),
    (Vtc, {"stretch": -1.0}),
    *((cls, {"rows": -1}) for cls in (Splitfuse, Batch)),
    *((cls, {"max_running": 0}) for cls in (Splitfuse, Batch)),
]


@pytest.mark.parametrize(("cls", "bad"), BAD)
def test_ranges(cls: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=next(iter(bad))):
        cls(**bad)
