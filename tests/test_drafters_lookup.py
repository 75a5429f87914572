"""Drafters that look up what was there before, and those that guess and refine: they do what they say."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from pronghorn.calibrate.steps import calibrate
from pronghorn.errors import MethodError
from pronghorn.llm import LLM
from pronghorn.methods.draft._trail import Trail
from pronghorn.methods.draft.aggressive import Aggressive
from pronghorn.methods.draft.copyspec import Copyspec
from pronghorn.methods.draft.jacobi import Jacobi
from pronghorn.methods.draft.lookahead import Lookahead
from pronghorn.methods.draft.prompt_lookup import PromptLookup
from pronghorn.methods.draft.suffix import Suffix
from pronghorn.ops.cpu._native import Ngrams
from pronghorn.seq import Request, Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Draft
from tests.conformance._rig import check_draft, sequence
from tests.engines import engine, prompt
from tests.test_losslessness import prompts

MANY = 1_000_000
EVERY = (Aggressive, Copyspec, Jacobi, Lookahead, PromptLookup, Suffix)
COPIERS = (Aggressive, Copyspec, PromptLookup, Suffix)


def step(
    d: Any, s: Seq, says: Callable[[list[int]], int], k: int = 64, room: DraftRoom | None = None
) -> Draft:
    """One step under a target that says `says(text)` after every text; the draft as it was run."""
    draft = d.propose([s], [k], room or DraftRoom())[0].clip(k).head((room or DraftRoom()).rows)
    check_draft(draft, k, MANY)
    assert len(draft.score) in (0, draft.n)
    assert ((draft.score > 0) & (draft.score < 1)).all()
    texts = [s.tokens]
    for token, parent in zip(draft.tokens.tolist(), draft.parent.tolist(), strict=True):
        texts.append([*texts[parent + 1], token])
    best = [says(t) for t in texts]
    accept = draft.walk(best.__getitem__)
    s.tokens += [int(draft.tokens[i]) for i in accept.path] + [accept.bonus]
    d.observe([s], [draft], [accept], [{"top1": np.array(best, np.int32)[:, None]}])
    return draft


def passes(d: Any, prompt: Sequence[int], answer: Sequence[int], number: int = 0) -> int:
    """Steps in which a target that says `answer`, whatever is drafted, gets through it."""
    s, n, start = sequence(list(prompt), number=number), 0, len(prompt)
    while (left := len(answer) - (len(s.tokens) - start)) > 0:
        step(d, s, lambda text: answer[len(text) - start], left - 1)
        n += 1
    assert s.tokens == [*prompt, *answer]
    return n


def words(seed: int, n: int, kinds: int = 5000) -> list[int]:
    return np.random.default_rng(seed).integers(10, kinds, n).tolist()


# ------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("kind", COPIERS)
def test_verbatim_repetition_takes_few_passes(kind: Any) -> None:
    text = words(1, 200)
    assert passes(kind(), [1, 2, *text, 3, 4], text) / len(text) < 0.2


@pytest.mark.parametrize("kind", EVERY)
def test_no_room_and_no_depth(kind: Any) -> None:
    text = words(2, 30)
    d, s = kind(), sequence([1, *text, 2, *text[:9]])
    for k, room in ((0, DraftRoom()), (8, DraftRoom(rows=0)), (0, DraftRoom()), (8, DraftRoom(rows=2))):
        step(d, s, lambda t: t[len(t) - len(text) - 1], k, room)
    assert s.tokens == [1, *text, 2, *text[: len(s.tokens) - len(text) - 2]]


@pytest.mark.parametrize("kind", EVERY)
def test_memory_lost_at_every_step_changes_no_draft(kind: Any) -> None:
    """What one sequence drafts, another with the same text drafts too; a memory may go at any time."""
    r = np.random.default_rng(3)
    table = r.integers(0, 12, (12, 12))

    def says(text: list[int]) -> int:
        return int(table[text[-2], text[-1]])

    kept, lost = sequence([1, 2, 3, 4]), sequence([1, 2, 3, 4], number=1)
    d, e = kind(), kind()
    for _ in range(40):
        one, two = step(d, kept, says, 8), step(e, lost, says, 8)
        assert one.tokens.tolist() == two.tokens.tolist()
        assert one.parent.tolist() == two.parent.tolist()
        lost._memory.clear()


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (Aggressive, {"length": 0}), (Aggressive, {"near": -1}), (Copyspec, {"key": 0}),
        (Copyspec, {"length": 5000}), (Jacobi, {"length": 0}), (Lookahead, {"ngram": 1}),
        (Lookahead, {"window": 65}), (Lookahead, {"guesses": 0}), (Suffix, {"nodes": 0}),
        (Suffix, {"least": 1.0}), (Suffix, {"memory": 99}), (Suffix, {"memory": -1}),
    ],
)  # fmt: skip
def test_ranges(kind: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=next(iter(bad))):
        kind(**bad)


def test_trail_is_bounded_and_known_by_the_text() -> None:
    trail: Trail[int] = Trail(3)
    for i in range(5):
        trail.put([7, 8, i], i)
    assert len(trail) == 3
    assert [trail.get([7, 8, i], 3, -1) for i in range(5)] == [-1, -1, 2, 3, 4]
    assert trail.get([7, 8, 4, 9], 3, -1) == 4, "the first three tokens"
    assert trail.get([8, 8, 4], 3, -1) == -1


# ------------------------------------------------------------------------------------ prompt-lookup


@pytest.mark.parametrize(("least", "most"), [(1, 1), (2, 3), (1, 5)])
def test_prompt_lookup_finds_what_a_scan_finds(least: int, most: int) -> None:
    def scan(text: list[int], length: int) -> list[int]:
        n = len(text)
        for size in range(min(most, n), least - 1, -1):
            for end in range(n - 1, size - 1, -1):
                if text[end - size : end] == text[n - size :]:
                    return [text[end + i % (n - end)] for i in range(length)]
        return []

    d, r, found = PromptLookup(most, least, 6), np.random.default_rng(8), 0
    for case in range(100):
        s = sequence(r.integers(0, 7, int(r.integers(1, 30))).tolist(), number=case)
        for _ in range(8):
            depth = int(r.integers(0, 8))
            for _twice in range(2):  # nothing is learned from being asked
                draft = d.propose([s], [depth], DraftRoom())[0].tokens.tolist()
                assert draft == scan(s.tokens, min(depth, 6))
            found += bool(draft)
            s.tokens += r.integers(0, 7, int(r.integers(1, 4))).tolist()
    assert 200 < found < 780


# ----------------------------------------------------------------------------------------- copyspec


def test_copyspec_follows_a_place_that_ends_as_the_text_does() -> None:
    d, r, hits = Copyspec(key=2, length=4), np.random.default_rng(4), 0
    for case in range(100):
        s = sequence(r.integers(0, 9, 12).tolist(), number=case)
        for _ in range(10):
            draft = d.propose([s], [4], DraftRoom())[0].tokens.tolist()
            if draft:
                text = [*s.tokens, *draft]
                n = len(s.tokens)
                stood = [
                    i for i in range(2, n) if text[i - 2 : i] == text[n - 2 : n] and text[i : i + 4] == draft
                ]
                assert stood
                hits += 1
            s.tokens += r.integers(0, 9, int(r.integers(1, 4))).tolist()
    assert hits > 50


def test_copyspec_reads_in_pieces_as_at_once() -> None:
    """And as the rule says: a place that was wrong is left for where the last tokens stood before."""
    text = words(5, 300, 16)
    pieces, at, run, copied = Ngrams(3, 3), 0, 0, 0
    for n in range(1, 300):
        if at and text[at] == text[n - 1]:
            at, run = at + 1, run + 1
        else:
            gram = text[max(0, n - 3) : n]
            ends = [end for end in range(3, n) if text[end - 3 : end] == gram]
            at, run = (ends[-1], 3) if ends else (0, 0)
        once = Ngrams(3, 3)
        once.extend(text[:n])
        if n % 7 == 0 or n == 299:
            pieces.extend(text[len(pieces) : n])
        for each in (once, pieces) if len(pieces) == n else (once,):
            tokens, right = each.copied(5)
            assert tokens.tolist() == ([text[at + i % (n - at)] for i in range(5)] if at else [])
            assert right == run
        copied += run > 3
    assert copied > 10


def test_hindsight_is_what_would_have_been_drafted() -> None:
    """Asked before every token, or of the whole text at once."""
    text = words(5, 300, 16)
    told = []
    for n in range(1, 300):
        before = Ngrams(3, 2)
        before.extend(text[:n])
        told.append(before.onward(1).tolist() == [text[n]])
    assert 10 < sum(told) < 290
    drafter, seq = PromptLookup(), sequence(text[:200])
    for n in (201, 202, 250, 300):
        seq.tokens = text[:n]
        for back in (0, 1, 8, 63, 64):
            assert drafter.right(seq, back) == sum(told[n - 1 - back : n - 1])


def test_ngrams_refuse_what_cannot_be() -> None:
    for longest, shortest in ((3, 0), (2, 3), (65, 1)):
        with pytest.raises(ValueError, match="from 1 to 64"):
            Ngrams(longest, shortest)
    with pytest.raises(ValueError, match="from 0 to 4096"):
        Ngrams(3, 2).onward(4097)
    with pytest.raises(ValueError, match="from 0 to 64"):
        Ngrams(3, 2).right(65)
    assert Ngrams(3, 2).onward(8).size == 0 == Ngrams(3, 2).copied(8)[1]


def test_copyspec_stays_with_the_place_that_agreed() -> None:
    """Of two places with the same three tokens the one that is being copied goes on, not the newer."""
    early, late = [5, 6, 7, 8, 1, 2, 3, 40], [1, 2, 3, 50]
    s = sequence([*early, *late, 5, 6, 7])
    d = Copyspec()
    assert d.propose([s], [1], DraftRoom())[0].tokens.tolist() == [8]
    s.tokens += [8, 1, 2, 3]
    assert d.propose([s], [1], DraftRoom())[0].tokens.tolist() == [40]
    assert Copyspec().propose([sequence([*early, *late, 1, 2, 3])], [1], DraftRoom())[0].tokens.tolist() == [
        50
    ]


def test_copyspec_overlaps_the_end() -> None:
    got = Copyspec().propose([sequence([9, 1, 2, 1, 2, 1])], [5], DraftRoom())[0]
    assert got.tokens.tolist() == [2, 1, 2, 1, 2]


def test_copyspec_gains_with_the_context() -> None:
    """An answer made of pieces of a long chat: the more of the chat is there, the fewer passes."""
    chat, r = words(6, 1600), np.random.default_rng(6)
    answer = [t for i in r.integers(0, 1580, 20) for t in chat[i : i + 20]]
    took = [passes(Copyspec(), [1, *chat[-n:], 2], answer) for n in (100, 800, 1600)]
    assert took[0] > 1.2 * took[1] > 1.44 * took[2]
    assert len(answer) / took[2] > 3


# ------------------------------------------------------------------------------------------- suffix


def test_suffix_drafts_the_most_frequent_first() -> None:
    s = sequence([1, 2, 30, 1, 2, 40, 1, 2, 30, 7, 1, 2])
    d = Suffix(least=0.01).propose([s], [1], DraftRoom())[0]
    assert d.tokens.tolist() == [30, 40]
    assert d.parent.tolist() == [-1, -1]
    assert d.score == pytest.approx([2 / 3 * 2 / 3, 1 / 3 * 2 / 3])


def test_suffix_shares_are_those_of_all_places() -> None:
    """The first level of a draft, counted by looking at every place: 1000 texts over four tokens."""
    r, asked = np.random.default_rng(7), 0
    for case in range(1000):
        text = r.integers(0, 4, int(r.integers(2, 60))).tolist()
        n, match, after = len(text), 0, []
        for size in range(1, n):
            follows = [text[i] for i in range(size, n) if text[i - size : i] == text[n - size :]]
            if not follows:
                break
            match, after = size, follows
        d = Suffix(nodes=64, least=1e-6).propose([sequence(text, number=case)], [1], DraftRoom())[0]
        wanted = {t: after.count(t) / len(after) * match / (match + 1) for t in after}
        assert dict(zip(d.tokens.tolist(), d.score.tolist(), strict=True)) == pytest.approx(wanted)
        assert sorted(d.score.tolist(), reverse=True) == d.score.tolist()
        asked += len(after) > 1
    assert asked > 100


def test_suffix_is_surer_the_longer_the_match() -> None:
    text = words(9, 200)
    lengths = []
    for m in (1, 2, 4, 8):
        s = sequence([*text, 1, *text[20 - m : 20]])
        d = Suffix(nodes=64).propose([s], [64], DraftRoom())[0]
        assert d.score == pytest.approx([(m + i) / (m + i + 1) for i in range(d.n)])
        assert d.tokens.tolist() == text[20 : 20 + d.n]
        assert m / (m + d.n) >= 0.1 > m / (m + d.n + 1) or d.n == 64
        lengths.append(d.n)
    assert lengths == [9, 18, 36, 64]


def finish(d: Any, prompt: list[int], answer: list[int], number: int = 0) -> int:
    """`passes` of a sequence that the engine then ends."""
    s, n = sequence(prompt, number=number), 0
    while (left := len(answer) - (len(s.tokens) - len(prompt))) > 0:
        step(d, s, lambda text: answer[len(text) - len(prompt)], left - 1)
        n += 1
    s.finish = "stop"
    return n


def test_suffix_learns_from_earlier_answers() -> None:
    answer = words(10, 60)
    d, alone = Suffix(), Suffix(memory=0)
    first = finish(d, [1, 2, 3], answer)
    second = finish(d, [4, 2, 3], answer, 1)
    assert second < first / 3
    assert finish(alone, [1, 2, 3], answer) == finish(alone, [4, 2, 3], answer, 1) == first


def test_suffix_learns_from_an_answer_that_goes_on() -> None:
    answer = words(10, 600)
    d = Suffix()
    assert passes(d, [1, 2, 3], answer) == 600, "no end was told"
    assert passes(d, [4, 2, 3], answer[:500], 1) < 100


def test_suffix_keeps_no_more_than_its_memory() -> None:
    d = Suffix(memory=300)
    for i in range(30):
        finish(d, [1, 2, i], words(11 + i, 40), i)
        assert all(len(part) <= 150 for part in d._earlier.parts)
    assert sum(map(len, d._earlier.parts)) >= 150
    again = finish(d, [1, 2, 3], words(40, 40), 30)
    assert again < 15, "the newest is there"
    assert finish(d, [1, 2, 3], words(11, 40), 31) == 40, "the oldest is not"
    finish(d, [1, 2, 3], words(60, 500), 32)
    finish(d, [1, 2, 3], [5], 33)
    assert all(len(part) <= 150 for part in d._earlier.parts)
    assert len(d._earlier._told) == 1, "sequences that are finished are let go"


def test_suffix_many_sequences_at_once() -> None:
    """Answers that grow by turns stay apart: none goes on as another one does."""
    answers = [words(70 + i, 50) for i in range(4)]
    d, seqs = Suffix(), [sequence([1, 2, i], number=i) for i in range(4)]
    for _ in range(50):
        for s, a in zip(seqs, answers, strict=True):
            if (left := len(a) + 3 - len(s.tokens)) > 0:
                step(d, s, lambda t, a=a: a[len(t) - 3], left - 1)
    for s in seqs:
        s.finish = "length"
    for i, a in enumerate(answers):
        assert finish(d, [1, 2, 9], a, 4 + i) < 12


# --------------------------------------------------------------------------------------- aggressive


def noisy(r: np.random.Generator, clean: list[int], kinds: int) -> list[int]:
    """The source of a correction: tokens changed, left out and put in."""
    out: list[int] = []
    for token in clean:
        change = r.random()
        if change < 0.04:
            continue
        out += [int(r.integers(10, kinds))] if change < 0.08 else [token]
        if change > 0.97:
            out.append(int(r.integers(10, kinds)))
    return out


def test_aggressive_copies_a_sentence_in_two_passes() -> None:
    for seed in range(20):
        source = np.random.default_rng(seed).permutation(1000)[:40].tolist()
        assert passes(Aggressive(length=64), [2001, 2002, *source, 2003], [*source, 2003]) <= 2


def test_aggressive_finds_its_place_again() -> None:
    source = list(range(100, 160))
    prompt = [1, 2, *source, 3]
    d = Aggressive(length=64)
    changed = [*source[:20], 900, *source[21:], 3]
    assert passes(d, prompt, changed) <= 4
    dropped = [*source[:20], *source[23:], 3]
    assert passes(d, prompt, dropped, 1) <= 3
    added = [*source[:20], 900, 901, *source[20:], 3]
    assert passes(d, prompt, added, 2) <= 5
    moved = [*source[30:], *source[:30], 3]
    assert passes(d, prompt, moved, 3) <= 6


@pytest.mark.parametrize("kinds", [14, 100, 5000])
def test_aggressive_corrects_in_few_passes(kinds: int) -> None:
    """510 noisy texts, those of few tokens full of repeated n-grams: a wrong place costs passes only."""
    r, took, length = np.random.default_rng(12), 0, 0
    for case in range(170):
        clean = r.integers(10, kinds, 60).tolist()
        took += passes(Aggressive(), [1, 2, *noisy(r, clean, kinds), 3], clean, case)
        length += len(clean)
    assert took / length < (0.75 if kinds < 100 else 0.4)


def test_aggressive_leaves_a_wrong_place_where_it_was() -> None:
    """A token put in that happens to stand a little further on: the source is read from where it was left."""
    d, s = Aggressive(), sequence([*range(10, 31), 12, 99])
    s.tokens += [10, 11, 16, 12]
    assert d.propose([s], [2], DraftRoom())[0].tokens.tolist() == [13, 14]


def test_aggressive_waits_for_one_place() -> None:
    """A token that stands at several places shows none; the next one may."""
    d, s = Aggressive(near=0), sequence([5, 6, 7, 8, 5, 9, 3], 7)
    s.tokens.append(5)
    assert d.propose([s], [2], DraftRoom())[0].n == 0
    s.tokens.append(9)
    assert d.propose([s], [2], DraftRoom())[0].tokens.tolist() == [3]


# ------------------------------------------------------------------------------------------- jacobi


def test_jacobi_needs_two_passes_where_words_do_not_depend_on_each_other() -> None:
    """A target that knows its text by heart says it at every place, whatever stands before: the first pass
    refines all guesses to it, the second accepts them."""
    answer, length = words(13, 120), 6
    assert passes(Jacobi(length=length), [1, 2], answer) <= 2 * (120 / (length + 2) + 1)


def test_jacobi_keeps_what_the_target_said() -> None:
    """Behind a token that stays, the row's own word goes before what the table has for that token."""
    d, s, draft = Jacobi(length=3), sequence([1, 2]), Draft.chain([5, 8, 5])
    best = [4, 8, 5, 6]
    accept = draft.walk(best.__getitem__)
    s.tokens.append(4)
    d.observe([s], [draft], [accept], [{"top1": np.array(best, np.int32)[:, None]}])
    assert d._after[5][0] == 8
    again = d.propose([s], [3], DraftRoom())[0]
    assert again.tokens.tolist() == [8, 5, 6]
    assert again.score[1] > again.score[0]


def test_jacobi_begins_anew_behind_a_token_that_changed() -> None:
    d, s, draft = Jacobi(length=2), sequence([4, 9, 1, 2]), Draft.chain([5, 8])
    d.propose([s], [2], DraftRoom())  # reads the prompt: 9 follows 4
    s.tokens.append(4)
    d.observe(
        [s], [draft], [draft.walk([4, 8, 7].__getitem__)], [{"top1": np.array([[4], [8], [7]], np.int32)}]
    )
    assert d.propose([s], [2], DraftRoom())[0].tokens.tolist() == [9, 1]


def test_jacobi_begins_with_what_is_likely() -> None:
    d = Jacobi(length=3)
    assert d.propose([sequence([4, 5, 6, 4])], [3], DraftRoom())[0].tokens.tolist() == [5, 6, 4]
    assert d.propose([sequence([9, 8])], [3], DraftRoom())[0].tokens.tolist() == [8, 8, 8]
    s = sequence([9, 8])
    for _ in range(2):
        step(d, s, lambda t: 7 if t[-1] == 8 else 2)
    assert d.propose([sequence([1, 8], number=1)], [2], DraftRoom())[0].tokens.tolist() == [7, 2]


def test_jacobi_within_a_tree() -> None:
    """Where its chain was merged into a tree it goes on from the tree's first chain, and learns from all."""
    d, s = Jacobi(length=3), sequence([1, 2])
    tree = Draft(np.array([5, 6, 7, 9], np.int32), np.array([-1, -1, 0, 1], np.int32))
    top = [4, 7, 3, 8, 11]
    s.tokens.append(4)
    d.observe([s], [tree], [tree.walk(top.__getitem__)], [{"top1": np.array(top, np.int32)[:, None]}])
    assert {t: follows for t, (follows, _) in d._after.items()} == {5: 7, 6: 3, 7: 8, 9: 11, 2: 4}
    assert d.propose([s], [3], DraftRoom())[0].tokens.tolist() == [7, 8, 8]
    s.tokens += [6, 9, 12]
    top = [6, 0, 9, 0, 12]
    d.observe([s], [tree], [tree.walk(top.__getitem__)], [{"top1": np.array(top, np.int32)[:, None]}])
    assert d.propose([s], [2], DraftRoom())[0].tokens.tolist() == [12, 12]


# ---------------------------------------------------------------------------------------- lookahead


@pytest.mark.parametrize(("window", "ngram"), [(1, 2), (3, 3), (4, 4), (5, 2), (2, 6)])
def test_lookahead_in_one_tree_is_lookahead(window: int, ngram: int) -> None:
    """Columns and pool after every step equal those of a lookahead that runs every cell on its own."""
    r = np.random.default_rng(15)
    table = r.integers(0, 9, (9, 9, 9))

    def says(text: list[int]) -> int:
        return int(table[text[-3], text[-2], text[-1]])

    d, s = Lookahead(window=window, ngram=ngram, guesses=3), sequence([1, 2, 3, 4, 5, 1, 2, 8])
    columns = [list(d._fresh(s.tokens, len(s.tokens), c)) for c in range(window)]
    pool: dict[int, list[tuple[int, ...]]] = {}
    for _ in range(60):
        text = list(s.tokens)
        row = [c[0] for c in columns]
        assert row[0] == text[-1]
        new = [says([*text, *row[1 : i + 1], *c[1:]]) for i, c in enumerate(columns)]
        for c, last in zip(columns, new, strict=True):
            gram = (*c[1:], last)
            held = [g for g in pool.get(c[0], []) if g != gram]
            pool[c[0]] = [*held, gram][-3:]
        step(d, s, says)
        assert {t: list(g) for t, g in d._pool.grams.items()} == pool
        gone = len(s.tokens) - len(text)  # positions by which the pending token moved on
        columns = [[*c[1:], last] for c, last in zip(columns, new, strict=True)][gone - 1 :]
        n = len(s.tokens)
        columns += [list(d._fresh(s.tokens, n, c)) for c in range(len(columns), window)]
        columns[0][0] = s.tokens[-1]
        assert [list(c) for c in d._window(s.tokens, n)] == columns


def test_lookahead_cells_see_what_the_paper_says() -> None:
    """Cell (r, c) sees row 0 up to column c and its own column above, nothing else."""
    d = Lookahead(window=3, ngram=4, guesses=1)
    s = sequence(words(16, 40))
    columns = d._window(s.tokens, 40)
    draft = d.propose([s], [64], DraftRoom())[0]
    seen = set()
    for i in range(draft.n):
        path, at = [], i
        while at >= 0:
            path.append(int(draft.tokens[at]))
            at = int(draft.parent[at])
        seen.add(tuple(path[::-1]))
    row = [c[0] for c in columns]
    wanted = {(*row[1 : c + 1], *col[1 : r + 1]) for c, col in enumerate(columns) for r in range(3)} - {()}
    assert seen == wanted
    assert draft.n == 2 + 3 * 2


def test_lookahead_pool_is_bounded() -> None:
    r = np.random.default_rng(17)
    table = r.integers(0, 6, (6, 6, 6))
    d, s = Lookahead(window=6, ngram=3, guesses=2), sequence([1, 2, 3])
    for _ in range(200):
        step(d, s, lambda t: int(table[t[-3], t[-2], t[-1]] + len(t) // 50) % 6, 6)
        assert all(len(g) <= 2 for g in d._pool.grams.values())
        assert all(len(p) <= 2 for p in s.memory(d)["places"].values())
    assert max(len(g) for g in d._pool.grams.values()) == 2


def test_lookahead_without_a_window_is_plain_decoding() -> None:
    d, text = Lookahead(window=0), words(18, 40)
    assert passes(d, [1, *text, 2], text) == len(text)
    assert not d._pool.grams
    assert len(d._trail) == 0


def test_lookahead_cut_short_keeps_the_rest_of_its_window() -> None:
    d, s = Lookahead(window=4, ngram=4), sequence(words(19, 30))
    columns = d._window(s.tokens, 30)
    draft = step(d, s, lambda t: 7, room=DraftRoom(rows=3))
    assert draft.n == 3
    assert len(s.tokens) == 31
    kept = d._window(s.tokens, 31)
    assert kept[0] == (7, *columns[0][2:], 7)  # its three rows fitted in
    assert kept[1:] == columns[1:]


def test_lookahead_guesses_repeat_a_text() -> None:
    text = words(20, 200)
    assert passes(Lookahead(ngram=8, window=1), [1, *text, 2], text) / len(text) < 0.2


# ------------------------------------------------------------------------------ the bundled model


def answers(use: Sequence[str]) -> tuple[list[list[int]], int, int]:
    """Greedy and sampled answers in batches, some of them several to a prompt; steps and accepted tokens."""
    m = LLM(use=["weight.fp32", *use], threads=1, defaults=("match", "fcfs"))
    chats = [
        m.tokenizer.chat([{"role": "user", "content": p}]) for p in random.Random(1).sample(prompts(), 10)
    ]
    requests = [
        Request(tuple(ids), 40, temperature=t, seed=i, ignore_eos=True, n=2 if i == 3 else 1)
        for t in (0.0, 0.8)
        for i, ids in enumerate(chats)
    ]
    groups = [g for i in range(0, 20, 5) for g in m.engine.run(requests[i : i + 5])]
    m.close()
    seqs = [s for g in groups for s in g]
    return (
        [list(s.new) for s in seqs],
        sum(s.counts.steps for s in seqs),
        sum(s.counts.accepted for s in seqs),
    )


@pytest.fixture(scope="module")
def plain() -> list[list[int]]:
    return answers([])[0]


@pytest.mark.parametrize("name", ["aggressive", "copyspec", "jacobi", "lookahead", "suffix"])
def test_same_tokens_on_the_bundled_model(plain: list[list[int]], name: str) -> None:
    got, steps, accepted = answers([name])
    assert got == plain
    assert accepted > 0
    assert steps + accepted == 40 * len(plain)


@pytest.mark.parametrize("name", ["aggressive", "copyspec", "jacobi", "lookahead", "suffix"])
def test_same_tokens_where_memory_is_short(name: str) -> None:
    """Sequences are preempted and come back, fork, and share the drafter; sampled and greedy."""
    texts = [tuple(range(32, 127)), *(prompt(33 + 20 * i, i) for i in range(1, 4))]
    asked = [
        Request(t, 40, 0.8 * (i % 2), seed=i, ignore_eos=True, n=1 + (i == 3)) for i, t in enumerate(texts)
    ]
    alone = [[s.new for s in engine(["match"], "native").run([r])[0]] for r in asked]
    e = engine(["match", "sarathi:reserve=1,least=5,tbt=0.01", name], "native", kv_bytes=1)
    e.kv_rows = e.memory.kv_rows = max(len(r.ids) + r.n * r.max_tokens for r in asked) + 64
    calibrate(e)
    together = e.run(asked)
    assert [[s.new for s in seqs] for seqs in together] == alone
    assert sum(s.counts.preempted for seqs in together for s in seqs) > 0
    assert sum(s.counts.draft_rows for seqs in together for s in seqs) > 0
    e.close()
    assert e.store.held == 0
