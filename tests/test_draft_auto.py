"""The controller of drafts: chances that come true, rows that pay, drafters that rest, the same tokens."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pronghorn import LLM
from pronghorn.cost import StepCost
from pronghorn.errors import MethodError
from pronghorn.methods.draft.auto import BACK, LOOK, Auto
from pronghorn.methods.draft.prompt_lookup import PromptLookup
from pronghorn.ops.cpu import _native
from pronghorn.ops.cpu._native import Forest, Mood, Odds, Panel, Price
from pronghorn.seq import Request, Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Accept, Draft
from tests.conformance._rig import sequence
from tests.engines import engine

HOPE, RECENT, IDLE = Panel.HOPE, Panel.RECENT, Panel.IDLE


def worth(chances: list[float], n_seqs: int, room: DraftRoom) -> tuple[int, float, float]:
    return _native.worth(*room.cost.curve(), chances, n_seqs, room.base, room.read, room.rows, Panel.MARGIN)


def tree_of(mood: Mood, odds: Odds, *drafts: Draft) -> Forest:
    forest = Forest(odds)
    grown = [(d, draft.tokens, draft.parent, draft.score) for d, draft in enumerate(drafts)]
    assert forest.grow(mood.shift, False, grown, 64) == 0
    return forest


def mood_of(n: int) -> Mood:
    return Mood([HOPE] * n, [0] * n, [0] * n)


def cost(*points: tuple[int, float]) -> StepCost:
    """Steps of so many rows took so many seconds."""
    made = StepCost()
    for _ in range(12):
        for rows, seconds in points:
            made.observe(rows, rows, seconds)
    return made


A = 0  # the first child, drafted greedily
FAINT, FAR = 0.02, 3.0  # chances that are left out; log-odds that a sequence may differ at most
FLAT = ((1, 1e-2), (8, 1.02e-2), (64, 1.1e-2), (512, 8e-2))
DEAR = ((1, 1e-3), (8, 8e-3), (64, 64e-3), (512, 512e-3))


def test_nodes_run_as_far_as_they_pay() -> None:
    chances = [0.9, 0.8, 0.7, 0.6, 0.5, 0.04]
    n, token, row = worth(chances, 1, DraftRoom(cost=cost(*FLAT)))
    assert n == 6
    assert token == pytest.approx(1e-2, rel=0.1) and 0 <= row < 1e-3
    assert worth(chances, 1, DraftRoom(cost=cost(*DEAR)))[0] == 0
    assert worth(chances, 1, DraftRoom(rows=2, cost=cost(*FLAT)))[0] == 2


@settings(max_examples=60)
@given(
    st.lists(st.floats(0.02, 1.0), max_size=40), st.integers(1, 40), st.integers(0, 4200),
    st.integers(0, 400), st.integers(0, 40),
)  # fmt: skip
def test_what_nodes_are_worth_is_what_steps_are_predicted_to_take(
    some: list[float], n_seqs: int, prompts: int, context: int, rows: int
) -> None:
    """Against the same in Python. Also beyond 4,096 rows, where time is taken to be in proportion."""
    seen = cost((1, 1e-3), (7, 2e-3), (40, 5e-3), (500, 6e-2))
    chances, base = sorted(some, reverse=True), n_seqs + prompts
    room = DraftRoom(rows, base, base * context, seen)
    got = worth(chances, n_seqs, room)

    def best(at: int, read: int, most: int, price: float) -> tuple[int, float, float]:
        taken = [seen.predict(at + n, read + n * context) for n in range(most + 1)]
        tokens = [n_seqs + sum(chances[:n]) for n in range(most + 1)]

        def value(n: int) -> float:
            gain, more = tokens[n] - n_seqs, taken[n] - taken[0]
            if price:
                return gain * price - more / Panel.MARGIN
            return tokens[n] / taken[n] * (1 if n else Panel.MARGIN)

        n = max(range(most + 1), key=value)
        return n, taken[n] / tokens[n], (taken[n] - taken[0]) / max(n, 1)

    most, plain = min(rows, len(chances)), seen.predict(n_seqs, n_seqs * context) / n_seqs
    n, price, row = best(n_seqs, n_seqs * context, most, 0.0)
    if prompts:
        n, _, row = best(base, base * context, n, price if n else plain / Panel.MARGIN)
    assert got == pytest.approx((n, plain, row), rel=1e-6)


def test_a_large_batch_drafts_nothing() -> None:
    """Up to some rows a step costs the same, then in proportion: who is beyond that gains nothing."""
    knee = cost((1, 1e-2), (8, 1e-2), (16, 1.05e-2), (64, 4e-2), (256, 16e-2))
    chances = [0.5] * 32
    few = worth(chances, 1, DraftRoom(base=1, read=1, cost=knee))[0]
    many = worth(chances, 64, DraftRoom(base=64, read=64, cost=knee))[0]
    assert few > 0 and many == 0


def test_beside_a_prompt_rows_cost_what_they_add() -> None:
    """The prompt's rows have to run anyway: a draft row is bought if it costs less than a token alone."""
    dear = cost((1, 1e-2), (8, 1e-2), (64, 6.4e-2), (256, 25.6e-2))  # 1 ms for each row of a large step
    assert worth([0.9, 0.5, 0.01], 1, DraftRoom(base=65, read=65, cost=dear))[0] == 2


def test_odds_come_true_and_forget() -> None:
    odds = Odds(1)
    r = np.random.default_rng(0)
    assert odds.chance(A) == 0.5
    for _ in range(400):
        odds.note(A, bool(r.random() < 0.2))
    assert 0.08 < odds.chance(A) < 0.35
    for _ in range(200):
        odds.note(A, True)
    assert odds.chance(A) > 0.85


def test_a_sequence_differs_from_what_is_usual() -> None:
    odds, mood, chain = Odds(1), mood_of(1), Draft.chain([7, 8])
    for _ in range(8):
        mood.shift = tree_of(mood, odds, chain).learn(0, [9])[0]
    assert -FAR <= mood.shift[0] < 0
    fresh = tree_of(mood_of(1), odds, chain).falling()
    worse = tree_of(mood, odds, chain).falling()
    assert worse[0] < fresh[0] < 0.3
    better = mood_of(1)
    for _ in range(40):
        better.shift = tree_of(better, odds, chain).learn(0, [7, 8, 9])[0]
    assert tree_of(better, odds, chain).falling()[0] > 0.85
    for _ in range(500):  # with nothing new to say, a sequence becomes like any other
        better.shift = tree_of(better, odds).learn(0, [9])[0]
    assert abs(better.shift[0]) < 0.05


def test_nodes_that_were_not_run_teach_too() -> None:
    """Children of what came: of the first level 5 did and 6 did not, behind 5 nothing stood, behind 6 nobody
    knows."""
    odds = Odds(1)
    tree = Draft(np.array([5, 6, 7, 8], np.int32), np.array([-1, -1, 0, 1], np.int32))
    before = [odds.chance(kind) for kind in (0, 4, 1)]
    tree_of(mood_of(1), odds, tree).learn(0, [5, 9])
    first, second, behind = (odds.chance(kind) for kind in (0, 4, 1))
    assert first > before[0] and second < before[1] and behind < first
    known = odds.chance(1)
    tree_of(mood_of(1), odds, tree).learn(0, [6])
    assert odds.chance(1) == known


def test_siblings_and_sure_drafters_are_told_apart() -> None:
    odds, mood = Odds(1), mood_of(1)
    star = Draft(np.array([1, 2, 3], np.int32), np.full(3, -1, np.int32))
    chances = [c for *_, c in tree_of(mood, odds, star).nodes(0)]
    assert chances == pytest.approx([0.5, 0.125, 0.5 / 9], rel=1e-5)
    says = star._replace(score=np.array([0.2, 0.97, float("nan")]))
    chances = [c for *_, c in tree_of(mood, odds, says).nodes(0)]
    assert chances == pytest.approx([0.25, 0.95, 0.05], rel=1e-5)


def test_the_likeliest_are_taken() -> None:
    odds, mood = Odds(2), mood_of(2)
    forest = tree_of(mood, odds, Draft.chain([5, 6]), Draft.chain([5, 7]))
    assert [(t, p) for t, p, *_ in forest.nodes(0)] == [(5, -1), (6, 0), (7, 0)]
    falling = forest.falling()
    assert falling == sorted(falling, reverse=True)
    assert forest.run(0) == [None]
    ((tokens, parents, whose),) = forest.run(2)
    assert (tokens.tolist(), parents.tolist(), whose) == ([5, 6], [-1, 0], [0])
    assert forest.likely(0, 0) == [0] and forest.likely(0, 1) == []


def test_the_likeliest_of_all_trees_are_run() -> None:
    odds = Odds(1)
    forest = tree_of(mood_of(1), odds, Draft.chain([1, 2]))
    sure, none = Draft.chain([3, 4], np.array([0.95, 0.95])), Draft.empty()
    for t, d in enumerate((none, sure), 1):
        assert forest.grow([0.0], False, [(0, d.tokens, d.parent, d.score)], 64) == t
    assert len(forest.falling()) == 4
    first, empty, second = forest.run(3)
    assert empty is None and second[0].tolist() == [3, 4] and first[0].tolist() == [1]
    assert [forest.learn(t, [3, 4, 5])[1:] for t in range(3)] == [([1], [0]), ([0], [0]), ([2], [2])]


def test_what_cannot_be_joined_is_refused() -> None:
    forest = tree_of(mood_of(1), Odds(1))
    chain, none = Draft.chain([1, 2]), np.zeros(0)
    for by, parents, score, what in (
        (1, chain.parent, none, "not there"),
        (0, np.array([1, -1], np.int32), none, "parents come before"),
        (0, chain.parent, np.zeros(1), "as many parents"),
    ):
        with pytest.raises(ValueError, match=what):
            forest.grow([0.0], False, [(by, chain.tokens, parents, score)], 8)
    with pytest.raises(ValueError, match="a shift for each"):
        forest.grow([0.0, 0.0], False, [], 8)
    forest = tree_of(mood_of(1), Odds(1), chain)
    with pytest.raises(ValueError, match="node that is not there"):
        forest.draft(0, [9])
    with pytest.raises(ValueError, match="parents come before"):
        forest.draft(0, [1])
    with pytest.raises(ValueError, match="tree that is not there"):
        forest.draft(1, [])


def test_who_brings_nothing_rests() -> None:
    mood = mood_of(1)
    mood.judge(0, 1.0, 1000, 0)
    assert mood.awake(0) == [0]
    while mood.gain[0] > 0:
        assert mood.awake(1) == [0]
        mood.judge(0, -1.0, 1000, 0)
    assert mood.until[0] == 4  # two steps rest, and up to two more
    mood.judge(0, -1.0, 1000, 4)
    assert mood.until[0] == 12  # four
    mood.judge(0, -1.0, 5, 12)  # no longer than it may cost
    assert [mood.awake(12 + i) for i in range(1, 9)] == [[]] * 7 + [[0]]
    mood.judge(0, 100.0, 5, 20)
    assert mood.awake(21) == [0]
    mood.judge(0, -1000.0, 0, 21)
    assert mood.awake(22) == [0]


def test_who_rests_equally_long_wakes_together() -> None:
    until = set()
    for now in range(100, 108):
        mood = Mood([-1.0], [3], [0])
        mood.judge(0, -1.0, 1000, now)
        until.add(mood.until[0])
        assert now + 16 < mood.until[0] <= now + 33
    assert until == {128}


def test_a_gain_after_a_rest_is_followed_up() -> None:
    """One ask in a hundred steps would never outweigh what failed before."""
    mood, now = mood_of(1), 0
    for _ in range(200):
        mood.judge(0, -1.0, 100, now)
    while not mood.awake(now):
        now += 1
    mood.judge(0, 2.0, 100, now)
    assert mood.gain[0] < 0
    assert mood.awake(now + 1) == [0]
    mood.judge(0, -1.0, 100, now + 1)
    assert [bool(mood.awake(now + i)) for i in range(2, 42)].count(True) < 3


def test_another_sequence_rests_on() -> None:
    """Unless it is cheap to ask: each text is another chance."""
    mood = Mood([-1.0, -1.0], [6, 6], [50, 50])
    later = mood.again(20, [False, True])
    assert later.until == [50, 20] and later.failed == [6, 0]
    assert mood.again(90, [False, False]).awake(90) == [0, 1]


class Telling(PromptLookup):
    """In hindsight it had this many of the last tokens right."""

    had = 0

    def right(self, seq: Seq, n: int) -> int:
        return self.had


def asleep(
    until: list[list[int]], spend: float = 0.01, telling: tuple[int, ...] = ()
) -> tuple[Panel, list[Mood]]:
    """A panel whose drafters take a hundredth of a step to ask, and sequences that did not gain so far."""
    panel = Panel([*"abc"][: len(until[0])], spend, list(telling))
    for d in range(len(until[0])):
        panel.price(d).seconds = panel.price(d, first=True).seconds = 1e-5
    return panel, [Mood([0.0] * len(u), [1] * len(u), u) for u in until]


def asked(panel: Panel, moods: list[Mood], own: int = 1, depth: int = 4) -> dict[int, list[int]]:
    """In a step of 1 ms, of sequences with so many tokens of their own."""
    return dict(panel.wake(moods, [depth] * len(moods), [own] * len(moods), 1e-3))


def test_all_at_rest_are_passed_over_together() -> None:
    """Until the first of them wakes, or another sequence comes."""
    panel, moods = asleep([[5, 9], [7, 6]])
    assert not panel.sleeps(2, False)
    assert asked(panel, moods) == {}
    slept = []
    for _ in range(5):
        slept.append(panel.sleeps(2, True))
        panel.clock -= 1
        assert not panel.sleeps(3, False)
    assert slept == [True] * 3 + [False] * 2


def test_attempts_wait_for_their_share_of_the_time() -> None:
    """Two sequences, two drafters: 2e-5 s to ask one of them for both, of 1e-5 s a step."""
    panel, moods = asleep([[0, 0], [0, 0]])
    every = []
    for _ in range(8):
        got = {} if panel.sleeps(2, True) else asked(panel, moods)
        every.append(got)
        if got:
            for mood in moods:
                assert mood.asked == mood.tried == [0]  # the first in the list goes first
                panel.judge(mood, [], [], 0.0)
                mood.until = [0, 0]
    assert [bool(x) for x in every] == [False, True] * 4
    assert every[1] == {0: [0, 1]}


def test_one_that_waits_for_its_first_token_is_not_passed_over_for_good() -> None:
    panel, moods = asleep([[0]])
    panel.clock = 100
    for n in range(4):
        assert not panel.sleeps(1, True)
        assert bool(asked(panel, moods, own=n)) == bool(n)


def test_nobody_wakes_to_what_cannot_be_paid_for() -> None:
    """Its rest is over in step 4; what it takes, 1e-5 s of 1e-6 s a step, is there ten steps later."""
    panel, moods = asleep([[4]], spend=1e-3)
    assert not panel.sleeps(1, False) and asked(panel, moods) == {}
    panel.purse = 0.0
    assert asked(panel, moods) == {}
    while panel.sleeps(1, True):
        pass
    assert 10 <= panel.clock - 1 <= 11
    assert asked(panel, moods) == {0: [0]}


def test_a_text_that_a_drafter_has_not_read_yet_costs_more_to_ask_for() -> None:
    """In another sequence who is cheap to ask begins anew, but not where it would read a long prompt first;
    and what that took counts against it."""
    panel, _ = asleep([[0, 0]])
    panel.price(1, first=True).seconds = 2e-4
    old = Mood([0.0, 0.0], [1, 1], [0, 0])
    for gains in ([0.0, 0.0], [0.0, -1.0]):
        assert not panel.sleeps(1, False)
        assert asked(panel, [old], own=0) == {}  # a step of 1 ms was seen: a tenth is cheap
        mood = panel.begin()
        mood.gain = gains
        panel.purse = 1e-4
        assert asked(panel, [mood]) == {0: [0]}
    panel.purse = 3e-4
    assert asked(panel, [mood]) == {0: [0], 1: [0]}
    drafts = [(d, [0], [Draft.empty()], 1e-5) for d in range(2)]
    curve, had = ([1e-3] * 13, 0.0), []
    for _ in range(2):
        mood.gain = [0.0, 0.0]
        assert panel.choose([mood], drafts, [False], 8, *curve, 1, 0.0, 8) is None
        had.append(mood.gain[1])
        panel.purse, mood.until, mood.failed = 3e-4, [0, 0], [0, 0]
        assert asked(panel, [mood]) == {0: [0], 1: [0]}
    assert had[0] < -RECENT * 0.19 and -RECENT * 0.05 < had[1] < 0


def test_who_passes_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    e = engine(["prompt-lookup"], "native")
    text = Request((1, 2, 3, 4) * 8, 24, ignore_eos=True)
    ((want, *_),) = engine([], "native").run([text])
    proposes, passed, told = PromptLookup.propose, [0], [0]

    def propose(self: Any, seqs: Any, k: Any, room: Any) -> list[Draft]:
        passed[0] += 1
        return proposes(self, seqs, k, room) if passed[0] % 3 else []

    def observe(self: Any, seqs: Any, drafts: Any, *_: Any) -> None:
        assert len(seqs) == len(drafts) == 1
        told[0] += 1

    monkeypatch.setattr(PromptLookup, "propose", propose)
    monkeypatch.setattr(PromptLookup, "observe", observe)
    ((got, *_),) = e.run([text])
    assert got.new == want.new
    assert passed[0] > 5 and told[0] == passed[0] - passed[0] // 3


def test_who_would_have_been_right_hopes_anew_and_others_are_not_asked() -> None:
    """Whatever was spent on attempts; if that brings nothing it rests until it is looked at again."""
    panel, (mood,) = asleep([[100, 1 << 40]], 1e-6, (0,))
    assert not panel.sleeps(1, False) and asked(panel, [mood]) == {}
    for _ in range(3):
        assert mood.rests(0)
        panel.hope(mood, 0)
        times = 0
        while not mood.rests(0):
            assert not panel.sleeps(1, True)
            if not panel.goes_on(True, 4):
                assert asked(panel, [mood]) == {0: [0]}
            assert mood.tried == []
            mood.judge(0, -0.5, 100, panel.clock)
            times += 1
        assert 2 <= times <= 5
        assert not panel.sleeps(1, True) and asked(panel, [mood]) == {}
    panel.clock += 1000
    for _ in range(200):
        assert panel.sleeps(1, True) or asked(panel, [mood]) == {}
    both = [Mood([0.0, 0.0], [1, 1], [0, 1 << 40]) for _ in range(2)]
    panel.clock += 100
    panel.purse = 1.0
    assert not panel.sleeps(2, False)
    assert dict(panel.wake(both, [4, 4], [1, 1], 1.0)) == {0: [0, 1]}  # as any other


def test_every_few_steps_a_sequence_alone_is_looked_back_at() -> None:
    telling = Telling()
    made = Auto(drafters="prompt-lookup")
    made.__dict__["_drafters"] = [telling]
    room = DraftRoom(cost=cost(*FLAT))
    seq, other = sequence(list(range(20))), sequence(list(range(30, 50)))
    for s in (seq, other):
        s.tokens.append(1)
        made._mood(s).gain, made._mood(s).until = [-1.0], [1 << 40]

    def awake(*seqs: Seq) -> list[int]:
        """Steps in which somebody was asked."""
        out = []
        for _ in range(3 * LOOK):
            for s in seqs:
                made._mood(s).gain, made._mood(s).until = [-1.0], [1 << 40]
            made.propose(list(seqs), [8] * len(seqs), room)
            out += [made._panel.clock] * any(made._mood(s).asked and not made._mood(s).rests(0) for s in seqs)
        return out

    assert awake(seq) == []
    telling.had = BACK
    woke = awake(seq)
    assert len(woke) == 3 and not any(at % LOOK for at in woke)
    assert awake(seq, other) == []


def test_who_pays_is_asked_whatever_attempts_took() -> None:
    panel, moods = asleep([[0, 0]], spend=1e-6)
    moods[0].gain = [0.0, 0.5]
    for _ in range(3):
        assert not panel.sleeps(0, False)
        assert asked(panel, moods) == {1: [0]}
        assert asked(panel, moods, depth=0) == {}  # nothing may be drafted


def test_who_pays_goes_on_unlooked_at() -> None:
    """Until another wakes, a sequence comes or is nearly done, or it pays no more."""
    panel, (mood,) = asleep([[0, 9]])
    mood.gain = [0.5, 0.0]
    assert not panel.sleeps(1, False) and not panel.goes_on(False, 4)
    assert asked(panel, [mood]) == {0: [0]}
    while panel.clock < 8:
        assert not panel.sleeps(1, True) and panel.goes_on(True, 4)
        assert not panel.goes_on(False, 4) and not panel.goes_on(True, 0)
    assert not panel.sleeps(1, True) and not panel.goes_on(True, 4)
    panel.clock = 5
    mood.gain = [1e-9, 0.0]
    assert panel.goes_on(True, 4)
    panel.judge(mood, [], [], 0.0)
    assert mood.rests(0) and not panel.goes_on(True, 4)


def test_what_stood_is_what_was_gained() -> None:
    """To the credit of the first that proposes it: the second adds 6 behind 5, and is surer of both."""
    odds, sure = Odds(2), np.array([0.95, 0.95])
    forest = tree_of(mood_of(2), odds, Draft.chain([5]), Draft.chain([5, 6], sure))
    forest.falling()
    forest.run(2)
    assert forest.learn(0, [5, 7])[1:] == ([1, 1], [1, 0])
    assert tree_of(mood_of(2), odds, Draft.chain([5])).learn(0, [5, 7])[1:] == ([0, 0], [0, 0])  # not run
    panel = Panel(["a", "b"], 0.01, [])
    mood = panel.begin()
    panel.sleeps(1, False)
    panel.wake([mood], [4], [1], 1.0)
    panel.token, panel.row = 1.0, 0.25
    panel.judge(mood, [1, 1], [1, 0], 0.0)
    assert mood.gain == pytest.approx([HOPE + RECENT * (0.75 - HOPE), HOPE + RECENT * (-0.25 - HOPE)])
    panel.sleeps(2, False)
    panel.judge(mood, [0, 0], [0, 0], 0.05)  # no draft was worth running: the time was for nothing
    assert mood.gain[0] == pytest.approx((1 - IDLE) * (HOPE + RECENT * (0.75 - HOPE)) - IDLE * 0.05)


def test_what_pays_in_company_is_learned_in_company() -> None:
    panel = Panel(["a"], 0.01, [])
    assert not panel.sleeps(16, False)
    mood = panel.begin()
    panel.wake([mood], [4], [1], 1.0)
    for _ in range(50):
        panel.judge(mood, [1], [0], 0.1)
    assert panel.begin().rests(0)
    assert not panel.sleeps(1, False)
    other = panel.begin()
    panel.wake([other], [4], [1], 1.0)
    panel.token = 1.0
    for _ in range(50):
        panel.judge(other, [1], [1], 0.1)
    assert not panel.begin().rests(0)
    assert not panel.sleeps(16, False)
    assert panel.begin().rests(0)


def test_drafts_are_joined_chosen_and_learned_from() -> None:
    """Of two sequences, one of which has none; where steps of any size take as long, all nodes are run."""
    panel = Panel(["a", "b"], 0.5, [])
    panel.sleeps(2, False)
    moods = [panel.begin(), panel.begin()]
    assert panel.wake(moods, [4, 4], [1, 1], 1e-3) == [(0, [0, 1]), (1, [0, 1])]
    none, flat = Draft.empty(), ([1e-3] * 13, 0.0)
    answers = [(0, [0, 1], [Draft.chain([5]), none], 1e-6), (1, [0, 1], [Draft.chain([5, 6]), none], 1e-6)]
    chosen = panel.choose(moods, answers, [False, True], 8, *flat, 2, 0.0, 8)
    assert chosen is not None
    ((i, tokens, parents, by),) = chosen
    assert (i, tokens.tolist(), parents.tolist(), by) == (0, [5, 6], [-1, 0], "a+b")
    assert [m.tree for m in moods] == [0, -1]
    assert max(moods[1].gain) < HOPE  # it was asked for nothing
    panel.learn(moods, [Draft(tokens, parents), none], [Accept([0, 1], 7), Accept([], 3)])
    assert min(moods[0].gain) > HOPE and min(moods[0].shift) >= 0.0 and moods[0].tree == -1
    passes = [(0, [0, 1], [], 1e-6)]
    assert panel.choose(moods, passes, [False, True], 8, *flat, 2, 0.0, 8) is None
    dear = ([1e-3 * 2**i for i in range(13)], 0.0)
    assert panel.choose(moods, answers, [False, True], 8, *dear, 2, 0.0, 8) == []


def test_what_a_panel_cannot_take_is_refused() -> None:
    panel, (mood,) = asleep([[0, 0]])
    chain, curve = Draft.chain([1, 2]), ([1e-3] * 13, 0.0)

    def choose(*answers: Any) -> Any:
        return panel.choose([mood], list(answers), [False], 8, *curve, 1, 0.0, 8)

    wide = Draft(np.array([1, 2], np.int64), chain.parent)
    astray = Draft(chain.tokens, np.array([1, -1], np.int32))
    for answer, what in (
        ((2, [0], [chain], 0.0), "a draft for each"), ((0, [0], [chain, chain], 0.0), "a draft for each"),
        ((0, [1], [chain], 0.0), "a sequence that is not there"), ((0, [0], [wide], 0.0), "int32"),
        ((0, [0], [astray], 0.0), "parents come before"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=what):
            choose(answer)
    with pytest.raises(ValueError, match="as many sequences"):
        panel.wake([mood], [4, 4], [1, 1], 1e-3)
    with pytest.raises(ValueError, match="as many drafters"):
        panel.wake([mood_of(1)], [4], [1], 1e-3)
    choose((0, [0], [chain], 0.0))
    with pytest.raises(ValueError, match="a node that is not there"):
        panel.learn([mood], [chain], [Accept([2], 1)])
    for names, telling in (([], []), (["a"], [1])):
        with pytest.raises(ValueError, match="drafter"):
            Panel(names, 0.1, telling)


def test_a_first_time_is_no_price() -> None:
    price = Price()
    price.note(1.0)
    assert price.seconds == 0
    price.note(0.02)
    price.note(0.01)
    assert price.seconds == pytest.approx(0.015)  # what it takes on the average, not at best
    for _ in range(40):
        price.note(0.01)
    usual = price.seconds
    price.note(5.0)  # somebody else had the processor
    assert usual == pytest.approx(0.01, rel=0.05) and price.seconds < 1.25 * usual
    for _ in range(200):
        price.note(0.02)
    assert price.seconds == pytest.approx(0.02, rel=0.01)


def test_a_slow_first_call_puts_nobody_to_sleep() -> None:
    """The first proposal takes a hundred times as long as later ones; every draft stands."""
    made = Auto(drafters="prompt-lookup")
    asked = 0

    class Slow:
        traits = made.traits

        def propose(self, seqs: Any, k: Any, room: Any) -> list[Draft]:
            nonlocal asked
            asked += 1
            if asked == 1:
                time.sleep(0.05)
            return [Draft.chain([1, 2, 3]) for _ in seqs]

        def observe(self, *_: Any) -> None: ...

    made.__dict__["_drafters"] = [Slow()]
    seq, room = sequence(list(range(20))), DraftRoom(cost=cost(*FLAT))
    for _ in range(100):
        draft = made.propose([seq], [8], room)[0]
        seq.tokens += [*draft.tokens.tolist(), 9]
        made.observe([seq], [draft], [Accept(list(range(draft.n)), 9)], [{}])
    assert asked > 90


def test_trials_stay_within_their_share() -> None:
    panel = Panel(["a"], 0.01, [])
    spent = 0.0
    for _ in range(2000):
        panel.steps += 1.0
        spent += 3.0 * panel.affords(3.0)
    assert 0 < spent <= Panel.TRIALS * 2000


@st.composite
def trees(draw: Any) -> Draft:
    n = draw(st.integers(1, 12))
    parents = [draw(st.integers(-1, i - 1)) for i in range(n)]
    tokens, seen = [], set()
    for p in parents:
        t = draw(st.integers(0, 30).filter(lambda t, p=p: (p, t) not in seen))
        seen.add((p, t))
        tokens.append(t)
    score = draw(st.sampled_from([0, 1]))
    sure = np.array([draw(st.floats(0.01, 0.99)) for _ in range(n * score)])
    return Draft(np.array(tokens, np.int32), np.array(parents, np.int32), score=sure)


@given(st.lists(trees(), min_size=1, max_size=4), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_drafts_join_into_one_tree(drafts: list[Draft], most: int) -> None:
    mood = mood_of(len(drafts))
    forest = tree_of(mood, Odds(len(drafts)), *drafts)
    nodes = forest.nodes(0)
    assert len(forest.falling()) == len(nodes)
    got = Draft(*(forest.run(most)[0] or Draft.empty())[:2])
    assert (got.parent < np.arange(got.n)).all()  # parents first, whatever the cut
    pairs = list(zip(got.parent.tolist(), got.tokens.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)

    def paths(x: Draft) -> set[tuple[int, ...]]:
        out: list[tuple[int, ...]] = []
        for t, p in zip(x.tokens.tolist(), x.parent.tolist(), strict=True):
            out.append((*(out[p] if p >= 0 else ()), t))
        return set(out)

    every = set().union(*(paths(d) for d in drafts))
    assert paths(got) <= every
    assert min(c for *_, c in nodes) >= FAINT if nodes else True
    if most >= len(nodes):
        assert len(paths(got)) == len(nodes)


def test_a_drafter_that_gains_nothing_costs_little() -> None:
    """On a text without repetition and dear rows, drafters are asked ever less often."""
    made = Auto(drafters="prompt-lookup")
    calls = 0

    class Counting:
        traits = made.traits

        def propose(self, seqs: Any, k: Any, room: Any) -> list[Draft]:
            nonlocal calls
            calls += 1
            made._panel.price(0).seconds = 1e-3  # as long as a step takes
            return [Draft.chain([1, 2, 3]) for _ in seqs]

        def observe(self, *_: Any) -> None: ...

    made.__dict__["_drafters"] = [Counting()]
    seq = sequence(list(range(20)))
    room = DraftRoom(cost=cost(*DEAR))
    for i in range(400):
        drafts = made.propose([seq], [8], room)
        seq.tokens.append(30 + i % 50)
        if drafts:
            made.observe([seq], drafts, [Accept([], seq.tokens[-1])], [{}])
    assert calls < 20


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_those_of_plain_decoding(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where every node is run, whether it pays or not: as if rows cost nothing."""
    monkeypatch.setattr(StepCost, "curve", lambda _: ([1e-3] * 13, 0.0))
    prompts = [
        "Repeat exactly:\nThe cat sat on the mat. The dog sat on the cat.",
        "Once upon a time",
        "1 2 3 1 2 3 1 2 3",
    ]
    plain, auto = LLM(defaults=("match", "fcfs")), LLM(use=["auto:spend=1"])
    options = {"max_tokens": 64, "temperature": temperature, "seed": 3, "ignore_eos": True}
    for batch in ([p] for p in prompts):
        assert [a.tokens for a in auto.generate(batch, **options)] == [
            a.tokens for a in plain.generate(batch, **options)
        ]
    got = auto.generate(prompts, **options)
    assert [a.tokens for a in got] == [a.tokens for a in plain.generate(prompts, **options)]
    assert sum(a.stats.drafted for a in got) > 0
    plain.close()
    auto.close()


@pytest.mark.parametrize(
    ("option", "word"), [("nodes=0", "nodes"), ("spend=0", "spend"), ("drafters=x", "known")]
)
def test_options_are_checked(option: str, word: str) -> None:
    from pronghorn.compose import parse

    with pytest.raises(MethodError, match=word):
        parse(f"auto:{option}")


def test_drafters_come_with_their_options() -> None:
    made = Auto(drafters="suffix:nodes=3+token-recycling:nodes=5+prompt-lookup")
    suffix, recycling, _ = made._drafters
    assert (suffix.nodes, recycling.nodes, made.traits.taps) == (3, 5, ("top8",))
    with pytest.raises(MethodError, match="needs"):
        Auto(drafters="rest")
