"""The native index of all substrings, against looking at every place of a short text."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pronghorn.ops.cpu._native import Suffixes

Text = list[int]
short = st.lists(st.integers(0, 3), max_size=40)


def ends(texts: list[Text], part: Text) -> list[tuple[int, int]]:
    """Where `part` ends: text, position."""
    n = len(part)
    return [(i, e) for i, t in enumerate(texts) for e in range(n, len(t) + 1) if t[e - n : e] == part]


def made(texts: list[Text]) -> Suffixes:
    out = Suffixes()
    for t in texts:
        out.begin()
        out.extend(t)
    return out


@given(short)
@settings(max_examples=300, deadline=None)
def test_the_longest_end_that_occurred_before(text: Text) -> None:
    out = Suffixes()
    for i, token in enumerate(text):
        out.extend([token])
        seen = text[: i + 1]
        longest = max(n for n in range(i + 1) if n == 0 or len(ends([seen], seen[-n:])) > 1)
        assert out.repeated()[1] == longest
    assert len(out) == len(text)


def drafted(
    out: Suffixes, place: tuple[int, int], most: int, depth: int, least: int
) -> tuple[list[int], list[int], list[float]]:
    _, tokens, parents, shares = out.draft(place, most, depth, least, 0.0, 0)
    return tokens.tolist(), parents.tolist(), shares.tolist()


@given(st.lists(short, min_size=1, max_size=4), short)
@settings(max_examples=300, deadline=None)
def test_following_finds_the_longest_end_that_is_there(texts: list[Text], asked: Text) -> None:
    place = made(texts).follow((0, 0), asked)
    assert place[1] == max(n for n in range(len(asked) + 1) if n == 0 or ends(texts, asked[-n:]))


@given(st.lists(short, min_size=1, max_size=3), short)
@settings(max_examples=300, deadline=None)
def test_shares_are_those_of_all_occurrences(texts: list[Text], asked: Text) -> None:
    out = made(texts)
    place = out.follow((0, 0), asked)
    tokens, parents, shares = drafted(out, place, 100, 3, 1)
    assert len(set(zip(parents, tokens, strict=True))) == len(tokens)
    if not place[1]:
        assert not tokens
        return
    part = asked[len(asked) - place[1] :]
    while part and not any(e < len(texts[i]) for i, e in ends(texts, part)):
        part = part[1:]  # nothing follows: its longest end that something follows
    after = [texts[i][e] for i, e in ends(texts, part) if e < len(texts[i])] if part else []
    first = {t: s for t, p, s in zip(tokens, parents, shares, strict=True) if p < 0}
    assert first == pytest.approx({t: after.count(t) / len(after) for t in set(after)})
    best = [s for s, p in zip(shares, parents, strict=True) if p < 0]
    assert best == sorted(best, reverse=True)


def test_a_run_seen_once_is_no_certainty() -> None:
    out = Suffixes()
    out.extend([1, 2, 3, 4, 1, 2, 3, 5, 1, 2])
    worth, tokens, parents, scores = out.draft(out.repeated(), 3, 10, 1, 0.1, 2)
    assert (tokens.tolist(), parents.tolist()) == ([3, 5, 4], [-1, 0, 0])
    assert scores == pytest.approx([2 / 3, 3 / 8, 3 / 8])  # matched 2, then 3
    assert worth == pytest.approx(2 / 3 + 2 * 2 / 3 * 3 / 8)
    assert out.draft(out.repeated(), 3, 10, 1, 0.3, 2)[1].tolist() == [3], "fainter once discounted"


def test_limits_of_a_draft() -> None:
    out = Suffixes()
    out.extend([1, 2, 3, 4, 5, 6, 7, 1, 2])
    place = out.repeated()
    assert place[1] == 2
    assert drafted(out, place, 3, 10, 2) == ([3, 4, 5], [-1, 0, 1], [1.0, 1.0, 1.0])
    assert drafted(out, place, 10, 2, 2)[0] == [3, 4]
    assert drafted(out, place, 10, 10, 3)[0] == []  # no place of three tokens
    assert drafted(out, place, 0, 10, 2)[0] == []
    assert drafted(out, place, 100, 100, 2)[0][:9] == [3, 4, 5, 6, 7, 1, 2, 3, 4]  # past its own end


def test_texts_do_not_join() -> None:
    out = made([[1, 2, 3], [4, 5, 6]])
    assert drafted(out, out.follow((0, 0), [2, 3]), 10, 10, 1)[0] == []


def test_what_cannot_be_is_refused() -> None:
    out = made([[1, 2, 3]])
    with pytest.raises(ValueError, match="below 0"):
        out.extend([1, -1])
    for place in ((99, 1), (-1, 1), (0, -1)):
        with pytest.raises(ValueError, match="place"):
            out.draft(place, 1, 1, 1, 0.0, 0)
        with pytest.raises(ValueError, match="place"):
            out.follow(place, [1])
    with pytest.raises(ValueError, match="nodes"):
        out.draft((0, 0), -1, 1, 1, 0.0, 0)


def test_a_token_costs_the_same_however_long_the_text() -> None:
    r = np.random.default_rng(0)

    def seconds(n: int) -> float:
        best = float("inf")
        for _ in range(3):
            out = Suffixes()
            out.extend(r.integers(0, 200, n).tolist())
            more = r.integers(0, 200, 2000).tolist()
            begin = time.perf_counter()
            for t in more:
                out.extend([t])
                out.draft(out.repeated(), 16, 16, 2, 0.01, 0)
            best = min(best, time.perf_counter() - begin)
        return best

    assert seconds(100_000) < 8 * seconds(2_000) + 0.01  # caches, not the length
