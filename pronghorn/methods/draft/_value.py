"""What drafted nodes are worth: how often such nodes stood, and how many of them a step should run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pronghorn.slots import DraftRoom

WEIGHT = 2.0  # trials that a prior counts as
MEMORY = 64.0  # trials that are remembered; older ones fade
MARGIN = 1.05  # by which a step with drafts must be better than one without
UNPRICED = 0.2  # chance above which nodes run while nothing is known of costs
FAINT = 0.02  # chance below which no row is looked at

Kind = int  # of a node, see `_merge.Merged.join`


class Odds:
    """How often nodes of a kind stood once their parent did. A kind never seen is taken to be like the same
    one a level higher; prior: of a first level never seen, else None."""

    def __init__(self, prior: Callable[[Kind], float | None]) -> None:
        self._prior = prior
        self._seen: dict[Kind, tuple[float, float]] = {}  # trials, hits
        self.known: dict[Kind, float] = {}  # chances of the kinds that were seen

    def chance(self, kind: Kind) -> float:
        if kind in self.known:
            return self.known[kind]
        prior = self._prior(kind)
        return self.chance(kind - 1) if prior is None else prior

    def note(self, kind: Kind, stood: bool) -> None:
        trials, hits = self._seen.get(kind, (0.0, 0.0))
        prior = self._prior(kind)
        fade = min(1.0, MEMORY / (trials + 1.0))
        trials, hits = (trials + 1.0) * fade, (hits + stood) * fade
        self._seen[kind] = trials, hits
        above = self.chance(kind - 1) if prior is None else prior
        self.known[kind] = (hits + WEIGHT * above) / (trials + WEIGHT)


class Ledger:
    """Seconds that steps took and that trials took; and, for one sequence, lately, what it takes to choose
    nodes and to learn from them."""

    def __init__(self) -> None:
        self.steps = 0.0
        self.trials = 0.0
        self.chooses = 0.0
        self.learns = 0.0

    def affords(self, seconds: float, share: float) -> bool:
        """Whether a trial of so many seconds at most is within a share of all; if so it is booked."""
        if not 0 < self.trials + seconds <= share * self.steps:
            return False
        self.trials += seconds
        return True


class Worth(NamedTuple):
    """n: nodes to run; token: seconds that a token takes without drafts; row: what a node's row adds."""

    n: int
    token: float
    row: float


def worth(chances: Sequence[float], n_seqs: int, room: DraftRoom) -> Worth:
    """How many of the nodes to run.

    chances: of each node to stand, falling; n_seqs: sequences that get one token in any case. Steps of
    answers alone are best where tokens per second are most, and that is the price of a token; a step that
    runs prompts too takes the nodes whose rows cost less.
    """
    cost, most = room.cost, min(len(chances), room.rows)
    each = room.read // max(1, room.base)
    alone = cost.line(n_seqs, n_seqs * each, most, each)
    if alone[0] <= 0:  # nothing measured yet
        return Worth(sum(c > UNPRICED for c in chances[:most]), 0.0, 0.0)
    plain = alone[0] / n_seqs
    best, at, gain = MARGIN / plain, 0, float(n_seqs)
    for n in range(1, most + 1):
        gain += chances[n - 1]
        if gain > best * alone[n]:
            best, at = gain / alone[n], n
    if room.base <= n_seqs:
        return Worth(at, plain, (alone[at] - alone[0]) / max(at, 1))
    beside = cost.line(room.base, room.read, at, each)
    most, price = at, 1.0 / best
    best, at, gain = 0.0, 0, 0.0
    for n in range(1, most + 1):
        gain += chances[n - 1] * price
        profit = gain - (beside[n] - beside[0]) / MARGIN
        if profit > best:
            best, at = profit, n
    return Worth(at, plain, (beside[at] - beside[0]) / max(at, 1))
