"""The two approximate cascades of a small and a large model, on a toy: each position has its own bigrams.

What their knobs do at the ends (the large model's text, the small one's text) and in between.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pronghorn.errors import MethodError
from pronghorn.methods.verify.bild import Bild
from pronghorn.methods.verify.entropy import Entropy
from pronghorn.methods.verify.typical import Typical
from pronghorn.types import Draft
from tests.conformance._rig import TableTarget

V = 8
LENGTH = 400
R = np.random.default_rng(4)
LARGE = R.dirichlet(np.full(V, 0.4), (LENGTH + 16, V))  # by position and the token before
SMALL = 0.5 * LARGE + 0.5 * R.dirichlet(np.full(V, 0.4), (LENGTH + 16, V))


class Text:
    """Greedy or sampled decoding with a chain drafter of length k."""

    def __init__(self, verifier: Any, k: int = 4, temperature: float = 0.0, give: str = "score") -> None:
        self.out, self.rounds, self.drafted, self.stood = [0], 0, 0, 0
        kept: dict[str, Any] = {}
        while len(self.out) < LENGTH:
            draft = self.draft(k, give)
            path = [*self.out, *draft.tokens.tolist()]
            rows = [LARGE[i, path[i - 1]] for i in range(len(self.out), len(path) + 1)]
            target = TableTarget(rows, draft.depths(), temperature, 3)
            target.depth = [len(self.out) + d for d in target.depth]
            target.kept = kept
            accept = verifier.verify(target, draft)
            self.out += [int(draft.tokens[i]) for i in accept.path] + [accept.bonus]
            self.rounds += 1
            self.drafted += draft.n
            self.stood += len(accept.path)
        self.out = self.out[:LENGTH]

    def draft(self, k: int, give: str) -> Draft:
        path, rows = list(self.out), []
        for _ in range(k):
            rows.append(SMALL[len(path), path[-1]])
            path.append(int(rows[-1].argmax()))
        made = Draft.chain(path[len(self.out) :])
        if give == "q":
            return made._replace(q=np.array(rows))
        return made._replace(score=np.array([row.max() for row in rows])) if give else made

    @property
    def per_round(self) -> float:
        return LENGTH / self.rounds


def plain(table: Any) -> list[int]:
    out = [0]
    while len(out) < LENGTH:
        out.append(int(table[len(out), out[-1]].argmax()))
    return out


def regret(text: Text) -> float:
    """Mean -log of the large model's probability, against its likeliest tokens'."""
    rows = [(LARGE[i, text.out[i - 1]], text.out[i]) for i in range(1, LENGTH)]
    return float(np.mean([np.log(p.max() / p[token]) for p, token in rows]))


@pytest.mark.parametrize("give", ["score", "q"])
def test_bild_at_the_ends(give: str) -> None:
    assert Text(Bild(rollback=0.0), give=give).out == plain(LARGE)
    assert Text(Bild(fallback=1.0), give=give).out == plain(LARGE)
    all_ = Text(Bild(fallback=0.0, rollback=np.inf), give=give)
    assert all_.stood == all_.drafted
    assert Text(Bild(), give="").out == plain(LARGE), "a draft that says nothing is matched"
    assert plain(LARGE) != plain(SMALL)


def test_bild_trades_likelihood_for_tokens() -> None:
    texts = [Text(Bild(fallback=0.3, rollback=rb)) for rb in (0.0, 0.5, 1.0, 2.0, 5.0)]
    speed, cost = [t.per_round for t in texts], [regret(t) for t in texts]
    assert speed == sorted(speed)
    assert speed[-1] > speed[0] + 0.3
    assert cost[0] == 0
    assert cost[-1] > 0
    print([(round(c, 3), round(s, 2)) for c, s in zip(cost, speed, strict=True)])
    fallback = [Text(Bild(fallback=fb, rollback=5.0)) for fb in (0.0, 0.4, 0.6)]
    assert fallback[0].per_round > fallback[1].per_round > fallback[2].per_round


def test_bild_samples_what_it_does_not_take_over() -> None:
    a, b = Text(Bild(rollback=0.0), temperature=1.0), Text(Bild(rollback=0.0), give="", temperature=1.0)
    assert a.out == b.out


def test_bild_takes_back_the_first_that_is_too_unlikely() -> None:
    rows = np.array([[0.1, 0.9, 0.0], [0.001, 0.0, 0.999], [0.5, 0.5, 0.0]])
    draft = Draft.chain([0, 0])._replace(score=np.array([0.9, 0.9]))
    accept = Bild(rollback=5.0).verify(TableTarget(rows, draft.depths(), 0.0), draft)  # type: ignore[arg-type]
    assert (accept.path, accept.bonus) == ([0], 2)
    draft = draft._replace(score=np.array([0.9, 0.5]))
    accept = Bild(rollback=9.0).verify(TableTarget(rows, draft.depths(), 0.0), draft)  # type: ignore[arg-type]
    assert (accept.path, accept.bonus) == ([0], 2), "not sure enough"


@pytest.mark.parametrize("give", ["score", "q"])
def test_entropy_at_the_ends(give: str) -> None:
    assert Text(Entropy(threshold=-1.0), give=give).out == plain(LARGE)
    small = Text(Entropy(threshold=1e9), give=give)
    assert small.out == plain(SMALL)
    assert small.per_round == pytest.approx(4, abs=0.1), "nobody has to write the token after the draft"
    assert Text(Entropy(), give="").out == plain(LARGE)


def test_entropy_leaves_more_to_the_drafter_as_it_bears_more() -> None:
    """Measured: the share of tokens that are the small model's own, and what they cost."""
    grid = (-1.0, 1.2, 1.6, 2.0, 2.4, 9.0)
    texts = [Text(Entropy(threshold=t, hold=3), give="q") for t in grid]
    cost, speed = [regret(t) for t in texts], [t.per_round for t in texts]
    assert cost[0] == 0
    assert cost[-1] > 0.1
    assert speed[-1] > speed[0] + 0.5
    print([(t, round(c, 3), round(s, 2)) for t, c, s in zip(grid, cost, speed, strict=True)])
    assert 0 < cost[3] < cost[-1]
    assert cost[2] < cost[4]


def test_entropy_holds_turns() -> None:
    """After a switch the model keeps its turn for `hold` tokens, over the end of a draft too."""
    turns: list[bool] = []

    class Watched(Entropy):
        def _next(self, turn: Any, entropy: float) -> None:
            super()._next(turn, entropy)
            turns.append(turn.large)

    Text(Watched(threshold=1.8, hold=7, window=2), give="q")
    lengths = np.diff(np.flatnonzero(np.diff(turns)))
    assert len(lengths) > 4
    assert lengths.min() >= 7


@pytest.mark.parametrize("verifier", [Bild(fallback=0.0, rollback=np.inf), Entropy(threshold=1e9)])
def test_what_is_forbidden_never_stands(verifier: Any) -> None:
    rows = np.array([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0], [0.5, 0.5, 0.0]])
    draft = Draft.chain([1, 2])._replace(score=np.array([0.9, 0.9]))
    accept = verifier.verify(TableTarget(rows, draft.depths(), 0.0), draft)
    assert (accept.path, accept.bonus) == ([0], 1)


@pytest.mark.parametrize(
    ("cls", "bad"),
    [
        (Bild, {"fallback": 1.5}),
        (Bild, {"rollback": -1.0}),
        (Bild, {"rollback": float("nan")}),
        (Entropy, {"window": 0}),
        (Entropy, {"hold": 0}),
        (Entropy, {"threshold": float("nan")}),
        (Typical, {"epsilon": 0.0}),
        (Typical, {"epsilon": 2.0}),
        (Typical, {"delta": 0.0}),
    ],
)
def test_ranges(cls: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=next(iter(bad))):
        cls(**bad)
