"""Every search: how many branches, and each of them ranked once."""

from __future__ import annotations

import pytest

from pronghorn.errors import MethodError
from pronghorn.methods.search.best_of_n import BestOfN
from pronghorn.seq import Request, Seq
from tests.conformance import _find
from tests.conformance._rig import sequence

NAMES = _find.names("search")


def branch(logprobs: list[float]) -> Seq:
    s = sequence([1, 2, 3])
    s.logprobs = logprobs
    return s


@pytest.mark.parametrize("name", NAMES)
def test_choice_is_of_the_branches(name: str) -> None:
    search = _find.defaults("search", name)
    n = search.branches(Request((1, 2)))
    assert n >= 1
    seqs = [branch([-0.1 * ((7 * i) % 5), -1.0]) for i in range(n)]
    order = search.choose(seqs)
    assert order
    assert len(set(order)) == len(order)
    assert set(order) <= set(range(n))
    assert search.choose(seqs) == order
    assert search.choose([branch([]) for _ in range(n)]), "branches without a token"


def test_best_of_n_ranks_by_the_mean() -> None:
    """A long good answer beats a short one that is worse on average."""
    seqs = [branch([-2.0, -2.0]), branch([-1.0] * 9), branch([]), branch([-1.5]), branch([-1.0])]
    assert BestOfN(5).choose(seqs) == [1, 4, 3, 0, 2]
    assert BestOfN(5).branches(Request((1,))) == 5


@pytest.mark.parametrize("n", [0, 1025])
def test_best_of_n_range(n: int) -> None:
    with pytest.raises(MethodError, match="n is"):
        BestOfN(n)
