"""What a sequence has taught of the drafters that were asked for it."""

from __future__ import annotations

from collections.abc import Sequence

from pronghorn.ops.cpu._native import Forest

DOUBLINGS = 8  # of a rest
RECENT = 0.05  # weight of the last asking
HOPE = 1e-4  # seconds that asking a drafter is thought to gain at first


class Mood:
    """What one sequence has taught: how far each drafter's chances are off, and who rests.

    asked: drafters that proposed for the last step."""

    def __init__(self, gain: Sequence[float], failed: Sequence[int], rest: Sequence[int]) -> None:
        n = len(gain)
        self.shift = [0.0] * n  # log-odds
        self.rest = list(rest)  # steps that a drafter is not asked in
        self.gain = list(gain)  # seconds that asking it gained, lately
        self.failed = list(failed)  # times in a row that this was not worth its time
        self.asked: list[int] = []
        self.trees: list[tuple[Forest, int]] = []  # what was drafted for the last step, if anything
        self._all = 0  # steps that all rest for

    def again(self) -> Mood:
        """How another sequence begins: with what was learned here, and hope for half of what failed."""
        return Mood(self.gain, [n // 2 for n in self.failed], [n // 2 for n in self.rest])

    def awake(self) -> list[int]:
        """Who is asked in this step. Cheap where nobody is."""
        if self._all > 0:
            self._all -= 1
            self.asked = []
            return self.asked
        self.asked = [d for d, rest in enumerate(self.rest) if not rest]
        if self.asked:
            self.rest = [max(0, rest - 1) for rest in self.rest]
        else:  # they slept through `least` steps of which this is the last
            least = min(self.rest)
            self._all = least - 1
            self.rest = [rest - least for rest in self.rest]
        return self.asked

    def judge(self, d: int, gain: float, most: int) -> None:
        """Let a drafter whose asking does not pay rest, for `most` steps at most. gain: seconds that its
        nodes will save, less those that their rows and asking took."""
        self.gain[d] += RECENT * (gain - self.gain[d])
        self.failed[d] = 0 if self.gain[d] > 0 else self.failed[d] + 1
        if self.failed[d]:
            self.rest[d] = min(1 << min(self.failed[d], DOUBLINGS), most)
