"""What sequences have taught of the drafters that were asked for them."""

from __future__ import annotations

from collections.abc import Sequence

from pronghorn.methods.draft._value import Price
from pronghorn.ops.cpu._native import Forest

DOUBLINGS = 8  # of a rest
RECENT = 0.05  # weight of the last asking
CHEAP = 0.1  # of a step: a drafter that takes less to ask gets another chance in each sequence
HOPE = 0.1  # of a step, which asking a drafter is thought to gain at first


class Mood:
    """What one sequence has taught: how far each drafter's chances are off, and who rests.

    asked: drafters that proposed for the last step."""

    def __init__(self, gain: Sequence[float], failed: Sequence[int], until: Sequence[int]) -> None:
        self.shift = [0.0] * len(gain)  # log-odds
        self.gain = list(gain)  # steps that asking it gained, lately
        self.failed = list(failed)  # times in a row that this was not worth its time
        self.until = list(until)  # step from which on a drafter is asked again
        self.asked: list[int] = []
        self.trees: list[tuple[Forest, int]] = []  # what was drafted for the last step, if anything

    def again(self, now: int, cheap: Sequence[bool]) -> Mood:
        """How another sequence begins in step `now`: with what was learned here, and with hope for half of
        what failed of those that are cheap to ask."""
        failed = [n // 2 if c else n for n, c in zip(self.failed, cheap, strict=True)]
        rest = [max(0, at - now) for at in self.until]
        return Mood(self.gain, failed, [now + (n // 2 if c else n) for n, c in zip(rest, cheap, strict=True)])

    def awake(self, now: int) -> list[int]:
        """Who is asked in this step."""
        self.asked = [d for d, at in enumerate(self.until) if at <= now]
        return self.asked

    def judge(self, d: int, gain: float, most: int, now: int) -> None:
        """Let a drafter whose asking does not pay rest, for `most` steps at most. gain: time that its
        nodes will save, less what their rows and asking took, in steps."""
        self.gain[d] += RECENT * (gain - self.gain[d])
        if gain > 0:  # asked again at once, to see whether that lasts
            self.failed[d] = 0 if self.gain[d] > 0 else self.failed[d] // 2
        elif self.gain[d] <= 0:
            self.failed[d] += 1
            self.until[d] = now + 1 + min(1 << min(self.failed[d], DOUBLINGS), most)


class Panel:
    """What all sequences have taught.

    proposes, learns: what it takes to ask each drafter for one sequence, and to tell it what came of it;
    clock: steps."""

    def __init__(self, n: int) -> None:
        self.proposes = [Price() for _ in range(n)]
        self.learns = [Price() for _ in range(n)]
        self.clock = 0
        self._usual = Mood([HOPE] * n, [0] * n, [0] * n)
        self._step = 0.0  # seconds of the last one that was judged
        self._asleep: list[int] = []  # sequences of the last step, where nobody was asked for any
        self._until = 0  # step in which that ends

    def sleeps(self, ids: list[int]) -> bool:
        """Whether nobody is asked in this step, of sequences that were all in the last one. Most steps are
        such where nothing can be foreseen, so it must cost next to nothing, however many they are."""
        return self.clock < self._until and ids == self._asleep

    def rest(self, ids: list[int], moods: Sequence[Mood]) -> None:
        """Nobody is asked for any of these."""
        self._asleep, self._until = ids, min((at for m in moods for at in m.until), default=0)

    def begin(self) -> Mood:
        """Of a new sequence."""
        cheap = [self._asks(d) < CHEAP * self._step for d in range(len(self.proposes))]
        return self._usual.again(self.clock, cheap)

    def judge(self, mood: Mood, saved: Sequence[float], own: float, step: float, most: float) -> None:
        """Let those of a sequence that were not worth their time rest.

        saved: seconds, by drafter; own: seconds that joining and choosing took; step: that a step without
        drafts takes; most: of a rest, in steps, for one that takes a step to ask."""
        self._step = step
        usual = self._usual
        for d in mood.asked:
            seconds = min(self._asks(d) + own / len(mood.asked), step)
            gain = (saved[d] - seconds) / step if step > 0 else 0.0
            mood.judge(d, gain, int(seconds * most / step) if step > 0 else 0, self.clock)
            usual.gain[d] += RECENT * (gain - usual.gain[d])
            usual.failed[d], usual.until[d] = mood.failed[d], mood.until[d]

    def _asks(self, d: int) -> float:
        return self.proposes[d].seconds + self.learns[d].seconds
