"""Every drafter: what it proposes is a tree that the core can run, and the same one each time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from pronghorn.errors import MethodError
from pronghorn.methods.draft.prompt_lookup import PromptLookup
from pronghorn.methods.draft.token_recycling import TokenRecycling
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Accept, Draft, Guarantee
from tests.conformance import _find
from tests.conformance._rig import N_VOCAB, check_draft, sequence

NAMES = _find.names("draft")


def walk(drafter: Any, seqs: list[Seq], truth: np.ndarray, steps: int, k: int = 6) -> list[list[Draft]]:
    """Greedy decoding with a bigram target whose scores are `truth` (n_vocab, n_vocab)."""
    n_vocab = len(truth)
    top = np.argsort(-truth, axis=1, kind="stable")[:, :8].astype(np.int32)
    history = []
    room = _find.room(drafter, truth)
    for _ in range(steps):
        told = drafter.propose(seqs, [k] * len(seqs), room)
        drafts = told or [Draft.empty()] * len(seqs)
        accepts, taps = [], []
        for s, d in zip(seqs, drafts, strict=True):
            check_draft(d, k, n_vocab)
            node, path = -1, []
            while True:
                best = int(top[s.tokens[-1] if node < 0 else d.tokens[node], 0])
                child = [i for i in range(d.n) if d.parent[i] == node and d.tokens[i] == best]
                if not child:
                    break
                node = child[0]
                path.append(node)
            accepts.append(Accept(path, best))
            rows = top[[s.tokens[-1], *d.tokens]]
            taps.append({"top1": rows[:, :1], "top8": rows})
            s.tokens += [int(d.tokens[i]) for i in path] + [best]
        if told:
            drafter.observe(seqs, drafts, accepts, taps)
        history.append(drafts)
    return history


def bigrams(seed: int, n_vocab: int = N_VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_vocab, n_vocab))


@pytest.mark.parametrize("name", NAMES)
def test_drafts_are_trees_within_their_depth(name: str) -> None:
    for k in (1, 2, 6, 40):
        d = _find.defaults("draft", name)
        assert d.traits.guarantee is Guarantee.EXACT
        seqs = [sequence([1, 2, 3, 1, 2, 3, 1]), sequence([5]), sequence(list(range(30)))]
        walk(d, seqs, bigrams(k), 30, k)


@pytest.mark.parametrize("name", NAMES)
def test_depth_zero_gives_nothing(name: str) -> None:
    d = _find.defaults("draft", name)
    seqs = [sequence([1, 2, 1, 2, 1]), sequence([1, 2, 1, 2, 1], number=1)]
    walk(d, seqs, bigrams(0), 10)
    none, some = d.propose(seqs, [0, 4], _find.room(d, bigrams(0))) or [Draft.empty()] * 2
    assert none.n == 0
    check_draft(some, 4, N_VOCAB)


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_draft_alike(name: str) -> None:
    runs = []
    for _ in range(2):
        seqs = [sequence([3, 1, 4, 1, 5]), sequence([9, 2, 6], number=1)]
        history = walk(_find.defaults("draft", name), seqs, bigrams(7), 25)
        runs.append([[(x.tokens.tolist(), x.parent.tolist()) for x in h] for h in history])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", NAMES)
def test_drafts_come_true(name: str) -> None:
    """A deterministic bigram text is periodic; every drafter must catch that."""
    text = [1, 2, 3]
    while name == "aggressive" and len(text) < 40:  # it drafts what stands in the prompt
        text.append(int(bigrams(3)[text[-1]].argmax()))
    seqs = [sequence(text)]
    history = walk(_find.defaults("draft", name), seqs, bigrams(3), 60)
    gained = len(seqs[0].tokens) - len(text) - len(history)
    assert gained > 60, f"{gained} drafted tokens stood in 60 steps"


@pytest.mark.parametrize("name", NAMES)
def test_memory_may_be_lost(name: str) -> None:
    """A fork starts with no memory of its own."""
    d = _find.defaults("draft", name)
    s = sequence([1, 2, 3])
    walk(d, [s], bigrams(3), 40)
    fork = sequence(s.tokens, number=1)
    offered = _find.room(d, bigrams(3))
    a, b = d.propose([s], [5], offered)[0], d.propose([fork], [5], offered)[0]
    if name == "auto":  # knows this sequence less, and dares less
        a, b = a.head(min(a.n, b.n)), b.head(min(a.n, b.n))
        assert b.n
    assert a.tokens.tolist() == b.tokens.tolist()
    assert a.parent.tolist() == b.parent.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_cost_does_not_grow_with_the_text(name: str) -> None:
    """A step at 40,000 tokens takes what one at 2,000 takes, give or take noise: the median of 50, as the
    first that a drafter is asked in reads the text."""
    r = np.random.default_rng(0)

    def usual(n: int) -> float:
        d = _find.defaults("draft", name)
        s = sequence(r.integers(0, N_VOCAB, n).tolist())
        times = []
        for _ in range(50):
            start = time.perf_counter()
            walk(d, [s], bigrams(0), 1)
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    assert usual(40_000) < 4 * usual(2_000)


# -------------------------------------------------------------------------------- prompt lookup


def naive_lookup(tokens: list[int], max_n: int, min_n: int, length: int) -> list[int]:
    for n in range(max_n, min_n - 1, -1):
        for end in range(len(tokens) - 1, n - 1, -1):
            if tokens[end - n : end] == tokens[len(tokens) - n :]:
                out = list(tokens)
                for i in range(length):
                    out.append(out[end + i])
                return out[len(tokens) :]
    return []


def test_prompt_lookup_against_a_scan() -> None:
    r = np.random.default_rng(1)
    for case in range(200):
        d = PromptLookup(max_ngram=int(r.integers(1, 5)), min_ngram=1, length=int(r.integers(1, 12)))
        s = sequence(r.integers(0, 4, int(r.integers(1, 8))).tolist(), number=case)
        for _ in range(6):
            got = d.propose([s], [64], DraftRoom())[0]
            assert got.tokens.tolist() == naive_lookup(s.tokens, d.max_ngram, 1, d.length)
            s.tokens += r.integers(0, 4, int(r.integers(1, 5))).tolist()


def test_prompt_lookup_overlaps_the_end() -> None:
    d = PromptLookup(length=6)
    assert d.propose([sequence([9, 1, 2, 1, 2, 1])], [6], DraftRoom())[0].tokens.tolist() == [
        2,
        1,
        2,
        1,
        2,
        1,
    ]
    assert d.propose([sequence([7, 7, 7])], [4], DraftRoom())[0].tokens.tolist() == [7, 7, 7, 7]


def test_prompt_lookup_never_matches_itself() -> None:
    assert PromptLookup().propose([sequence([1, 2, 3, 4, 5])], [8], DraftRoom())[0].n == 0


def test_prompt_lookup_prefers_the_most_recent() -> None:
    s = sequence([1, 2, 3, 1, 2, 4, 1, 2])
    assert PromptLookup(length=1).propose([s], [1], DraftRoom())[0].tokens.tolist() == [4]


def test_prompt_lookup_repeats_a_text_in_few_passes() -> None:
    """Copying 200 tokens takes fewer than 0.2 passes a token."""
    r = np.random.default_rng(2)
    text = r.integers(0, 1000, 200).tolist()
    d, s = PromptLookup(), sequence([*text, 5000, *text[:3]])
    passes, done = 0, 3
    while done < len(text):
        draft = d.propose([s], [10], DraftRoom())[0].tokens.tolist()
        n = 0
        while n < len(draft) and done + n < len(text) and draft[n] == text[done + n]:
            n += 1
        s.tokens += text[done : done + n + 1]
        done += n + 1
        passes += 1
    assert passes / len(text) < 0.2


@pytest.mark.parametrize("bad", [{"min_ngram": 0}, {"min_ngram": 4}, {"length": 0}, {"max_ngram": 99}])
def test_prompt_lookup_ranges(bad: dict[str, int]) -> None:
    with pytest.raises(MethodError, match=next(iter(bad))):
        PromptLookup(**bad)


# ------------------------------------------------------------------------------ token recycling


def test_token_recycling_shape_of_the_paper() -> None:
    shape = TokenRecycling(nodes=80)._tree.shape
    levels = np.bincount([depth for _, _, depth in shape])[1:]
    assert levels.tolist() == [8, 23, 25, 17, 6, 1]
    assert all(parent < i for i, (parent, _, _) in enumerate(shape))


def test_token_recycling_second_run_needs_fewer_passes() -> None:
    d, truth = TokenRecycling(), bigrams(11, 200)
    passes = []
    for _ in range(2):
        s, n = sequence([4]), 0
        while len(s.tokens) < 60:
            walk(d, [s], truth, 1)
            n += 1
        passes.append(n)
    assert passes[1] < passes[0]


def test_token_recycling_leaves_unseen_tokens_out() -> None:
    d = TokenRecycling()
    assert d.propose([sequence([3])], [6], DraftRoom())[0].n == 0
    top = np.arange(8, dtype=np.int32)[None]
    s = sequence([3])
    empty = [Draft.empty()]
    s.tokens.append(0)
    d.observe([s], empty, [Accept([], 0)], [{"top8": top}])
    tree = d.propose([sequence([3])], [6], DraftRoom())[0]
    assert tree.n > 0
    # 3 is the one token with known successors, so only it has children
    inner = {int(tree.tokens[p]) for p in tree.parent if p >= 0}
    assert inner <= {3}


def test_token_recycling_shallow_rows_have_the_last_word() -> None:
    d = TokenRecycling()
    s = sequence([5])
    draft = Draft.chain([5, 5])
    top = np.stack([np.arange(8) + 10 * i for i in range(3)]).astype(np.int32)
    s.tokens += [5, 5, 7]
    d.observe([s], [draft], [Accept([0, 1], 7)], [{"top8": top}])
    assert d._table.get(5) == list(range(8))


def test_token_recycling_text_cut_at_its_end() -> None:
    """An end of text inside the accepted run leaves `tokens` short: no wrong row is written."""
    d = TokenRecycling()
    s = sequence([1, 2])
    draft = Draft.chain([3, 4])
    top = np.tile(np.arange(8, dtype=np.int32), (3, 1))
    s.tokens += [3]
    d.observe([s], [draft], [Accept([0, 1], 6)], [{"top8": top}])
    assert d._table.get(1) in ([], [-1] * 8)


def test_token_recycling_memory_is_32_bytes_a_token() -> None:
    d, s = TokenRecycling(), sequence([31_999])
    s.tokens.append(1)
    d.observe([s], [Draft.empty()], [Accept([], 1)], [{"top8": np.arange(8, dtype=np.int32)[None]}])
    assert d._table.rows.nbytes == 32 * 32_000


@pytest.mark.parametrize("bad", [{"nodes": 0}, {"depth": 0}, {"width": 9}])
def test_token_recycling_ranges(bad: dict[str, int]) -> None:
    with pytest.raises(MethodError, match=next(iter(bad))):
        TokenRecycling(**bad)
