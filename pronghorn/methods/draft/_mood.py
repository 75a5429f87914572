"""What sequences have taught of the drafters that were asked for them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pronghorn.methods.draft._value import Price
from pronghorn.ops.cpu._native import Forest
from pronghorn.seq import Seq

DOUBLINGS = 8  # of a rest
RECENT = 0.1  # weight of the last asking
MOST = 1.0  # that one asking counts as at most, so that what ends is soon forgotten
CHEAP = 0.1  # of a step: a drafter that takes less to ask gets another chance in each sequence
HOPE = 0.1  # of a token's time, which asking a drafter is thought to gain at first
SAVED = 256  # steps whose share for attempts is kept


class Mood:
    """What one sequence has taught: how far each drafter's chances are off, and who rests.

    asked: drafters that proposed for the last step; tried: those of them that did not pay so far; tree: its
    place in the forest of that step, -1 where there is nothing to learn."""

    def __init__(self, gain: Sequence[float], failed: Sequence[int], until: Sequence[int]) -> None:
        self.shift = [0.0] * len(gain)  # log-odds
        self.gain = list(gain)  # what asking it gained lately, in times that a token takes
        self.failed = list(failed)  # times in a row that this was not worth its time
        self.until = list(until)  # step from which on a drafter is asked again
        self.asked: list[int] = []
        self.tried: list[int] = []
        self.tree = -1

    def again(self, now: int, cheap: Sequence[bool]) -> Mood:
        """How another sequence begins in step `now`: with what was learned here, and with hope for half of
        what failed of those that are cheap to ask."""
        failed = [n // 2 if c else n for n, c in zip(self.failed, cheap, strict=True)]
        rest = [max(0, at - now) for at in self.until]
        return Mood(self.gain, failed, [now + (n // 2 if c else n) for n, c in zip(rest, cheap, strict=True)])

    def awake(self, now: int) -> list[int]:
        """Who may be asked in this step."""
        return [d for d, at in enumerate(self.until) if at <= now]

    def judge(self, d: int, gain: float, most: int, now: int) -> None:
        """Let a drafter whose asking does not pay rest, for `most` steps or a few more. gain: time that its
        nodes saved, less what their rows and asking took. Those who rest equally long wake together:
        to ask several takes less than to ask one now and another later."""
        self.gain[d] += RECENT * (gain - self.gain[d])
        if gain > 0:  # asked again at once, to see whether that lasts
            self.failed[d] = 0 if self.gain[d] > 0 else self.failed[d] // 2
        elif self.gain[d] <= 0:
            self.failed[d] += 1
            rest = 1 << min(self.failed[d], DOUBLINGS, max(most, 1).bit_length() - 1)
            self.until[d] = -(-(now + 1 + rest) // rest) * rest if most else now + 1


class Panel:
    """What all sequences have taught.

    proposes, learns: what it takes to ask each drafter for one sequence, and to tell it what came of it;
    clock: steps; spend: share of their time for asking drafters that did not pay."""

    def __init__(self, n: int, spend: float) -> None:
        self.proposes = [Price() for _ in range(n)]
        self.learns = [Price() for _ in range(n)]
        self.clock = 0
        self.spend = spend
        self.asking = False  # somebody is asked in this step, which has so many sequences:
        self.n_seqs = 0
        self.token = self.row = 0.0  # seconds that a token takes without drafts, and that a node's row adds
        self.forest: Forest
        self._usual = Mood([HOPE] * n, [0] * n, [0] * n)
        self._step = 0.0  # seconds of the last one that was looked at
        self._purse = 0.0  # seconds that attempts may take
        self._filled = 0  # step up to which it has its share
        self._asleep: Sequence[Seq] = ()  # of the last step, where nobody was asked for any
        self._until = 0  # step in which that ends

    def sleeps(self, seqs: Sequence[Seq]) -> bool:
        """Whether nobody is asked in this step, of sequences that were all in the last one. Most steps are
        such where nothing can be foreseen, so it must cost next to nothing, however many they are."""
        self.clock += 1
        self.asking = False
        return self.clock < self._until and seqs == self._asleep

    def wake(
        self, seqs: Sequence[Seq], moods: Sequence[Mood], k: Sequence[int], own: float, step: float
    ) -> dict[int, list[int]]:
        """Who is asked, and for which sequences: those that pay; and those that may but did not pay so far,
        all of them once their share of the time is enough for that. k: rows that a draft may be deep; own:
        seconds that joining and choosing take for a sequence; step: that the step takes without drafts."""
        now, asked, price = self.clock, dict[int, list[int]](), 0.0
        share = self.spend * step
        self._purse = min(self._purse + (now - self._filled) * share, SAVED * share)
        self._filled, self._step = now, step
        tries: list[Mood] = []
        for i, mood in enumerate(moods):
            mood.tree, awake = -1, mood.awake(now) if k[i] > 0 else []
            mood.asked = [d for d in awake if mood.gain[d] > 0]
            for d in mood.asked:
                asked.setdefault(d, []).append(i)
            mood.tried = [d for d in awake if mood.gain[d] <= 0]
            if mood.tried:
                tries.append(mood)
                price += sum(map(self._asks, mood.tried)) + (0.0 if mood.asked else own)
        price = min(price, SAVED * share)
        if tries and self._purse >= price:
            for i, mood in enumerate(moods):
                mood.asked += mood.tried
                for d in mood.tried:
                    asked.setdefault(d, []).append(i)
        else:
            for mood in tries:
                mood.tried = []
        if not asked:
            self._asleep, self._until = seqs, min((at for m in moods for at in m.until), default=0)
            if tries:
                self._until = now + math.ceil((price - self._purse) / share)
        self.asking = bool(asked)
        return asked

    def begin(self) -> Mood:
        """Of a new sequence."""
        cheap = [self._asks(d) < CHEAP * self._step for d in range(len(self.proposes))]
        return self._usual.again(self.clock, cheap)

    def judge(self, mood: Mood, run: Sequence[int], stood: Sequence[int], own: float) -> None:
        """Let those of a sequence that were not worth their time rest.

        run, stood: nodes by the drafter that proposed them first; own: seconds that joining, choosing and
        learning took."""
        step, usual = self._step, self._usual
        for d in mood.asked:
            seconds = self._asks(d) + own / len(mood.asked)
            gain = stood[d] * self.token - run[d] * self.row - seconds
            if gain <= 0 and d in mood.tried:
                self._purse -= seconds
            gain = min(gain * self.n_seqs / step, MOST) if step > 0 else 0.0
            share = self.spend * step / (self.n_seqs * len(usual.gain))
            mood.judge(d, gain, int(min(seconds, step) / share) if share > 0 else 0, self.clock)
            usual.gain[d] += RECENT * (gain - usual.gain[d])
            usual.failed[d], usual.until[d] = mood.failed[d], mood.until[d]

    def _asks(self, d: int) -> float:
        return self.proposes[d].seconds + self.learns[d].seconds
