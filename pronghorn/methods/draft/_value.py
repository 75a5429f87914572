"""What drafted nodes are worth: how many of them a step should run."""

from __future__ import annotations

from typing import NamedTuple

from pronghorn.ops.cpu import _native
from pronghorn.slots import DraftRoom

MARGIN = 1.05  # by which a step with drafts must be better than one without
FIRST = 4  # steps of a size that are run without drafts
PLAIN = 0.005  # share of further steps that are
TRIALS = 0.005  # share of the time of steps for drafts that seem not to pay
UNPRICED = 0.2  # chance above which nodes run while nothing is known of costs


class Price:
    """What something takes on the average, in seconds; 0 as long as nothing is known. The first time, which
    loads and allocates, is no measure, nor are times when somebody else had the processor."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._times = 0

    def note(self, seconds: float) -> None:
        self._times += 1
        usual = self.seconds
        if self._times == 2:
            self.seconds = seconds
        elif self._times > 2:
            self.seconds += max(0.1, 1 / (self._times - 1)) * (min(seconds, 3 * usual) - usual)


class Ledger:
    """Seconds that steps took and that trials took; and what it takes, for one sequence, to ask where nobody
    drafts, to choose nodes and to learn from them."""

    def __init__(self) -> None:
        self.steps = 0.0
        self.trials = 0.0
        self.looks = Price()
        self.chooses = Price()
        self.learns = Price()
        self._since = 0  # steps with drafts since the last without
        self._plain: dict[int, int] = {}  # steps without, by size

    def abstains(self, room: DraftRoom, n_seqs: int) -> bool:
        """Whether a step is run without drafts, to learn what that takes: the first few of a size, later a
        share of all. Steps that run prompts are no measure of it."""
        self._since += 1
        size = room.base.bit_length()
        new = self._plain.get(size, 0) < FIRST and room.cost.seen(room.base) < FIRST
        if room.base > n_seqs or not (new or self._since * PLAIN >= 1):
            return False
        self._since, self._plain[size] = 0, self._plain.get(size, 0) + 1
        return True

    def affords(self, seconds: float) -> bool:
        """Whether a trial of so many seconds at most is within its share; if so it is booked."""
        if not 0 < self.trials + seconds <= TRIALS * self.steps:
            return False
        self.trials += seconds
        return True


class Worth(NamedTuple):
    """n: nodes to run; token: seconds that a token takes without drafts; row: what a node's row adds."""

    n: int
    token: float
    row: float


def worth(chances: list[float], n_seqs: int, room: DraftRoom) -> Worth:
    """How many of the nodes to run.

    chances: of each node to stand, falling; n_seqs: sequences that get one token in any case. Steps of
    answers alone are best where tokens per second are most, and that is the price of a token; a step that
    runs prompts too takes the nodes whose rows cost less.
    """
    most = min(len(chances), room.rows)
    at, price = room.cost.curve()
    if at[0] <= 0:  # nothing measured yet
        return Worth(sum(c > UNPRICED for c in chances[:most]), 0.0, 0.0)
    return Worth(*_native.worth(at, price, chances, n_seqs, room.base, room.read, most, MARGIN))
