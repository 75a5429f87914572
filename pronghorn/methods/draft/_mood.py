"""What sequences have taught of the drafters that were asked for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pronghorn.methods.draft._value import Price
from pronghorn.ops.cpu._native import Forest
from pronghorn.seq import Seq
from pronghorn.slots import Hindsight

DOUBLINGS = 8  # of a rest
RECENT = 0.05  # weight of the last asking
IDLE = 0.2  # and of one in company whose drafts were not worth running: rows are dear there, and will be
CHEAP = 0.1  # of a step: a drafter that takes less to ask gets another chance in each sequence
HOPE = 0.1  # of a token's time, which asking a drafter is thought to gain at first
STEADY = 16  # steps in a row, at most, for which is not asked anew who is asked
SAVED = 64  # steps whose share for attempts is kept
LOOK = 16  # steps after which a sequence alone is looked at in hindsight
BACK = 8  # tokens that are looked back at
RIGHT = 4  # of them that one must have had right
FOREVER = 1 << 60


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
        """How another sequence begins in step `now`: with what was learned here, but those that are cheap to
        ask are awake, as if they had not failed."""
        failed = [0 if c else n for n, c in zip(self.failed, cheap, strict=True)]
        return Mood(self.gain, failed, [now if c else at for at, c in zip(self.until, cheap, strict=True)])

    def awake(self, now: int) -> list[int]:
        """Who may be asked in this step."""
        return [d for d, at in enumerate(self.until) if at <= now]

    def judge(self, d: int, gain: float, most: int, now: int, weight: float = RECENT) -> None:
        """Let a drafter whose asking does not pay rest, for `most` steps or a few more. gain: time that its
        nodes saved, less what their rows and asking took. Those who rest equally long wake together:
        to ask several takes less than to ask one now and another later."""
        self.gain[d] += weight * (gain - self.gain[d])
        if gain > 0:  # asked again at once, to see whether that lasts
            self.failed[d] = 0 if self.gain[d] > 0 else self.failed[d] // 2
        elif self.gain[d] <= 0:
            self.failed[d] += 1
            rest = 1 << min(self.failed[d], DOUBLINGS, max(most, 1).bit_length() - 1)
            self.until[d] = -(-(now + 1 + rest) // rest) * rest if most else now + 1


class Panel:
    """What all sequences have taught.

    proposes, learns: what it takes to ask each drafter for one sequence, and to tell it what came of it;
    clock: steps; spend: share of their time for asking drafters that did not pay; telling: those that know
    when they would have been right, and where a sequence is alone are not asked at other times."""

    def __init__(self, n: int, spend: float, telling: Mapping[int, Hindsight]) -> None:
        self.proposes = [Price() for _ in range(n)]
        self.learns = [Price() for _ in range(n)]
        self.clock = 0
        self.spend = spend
        self.telling = telling
        self.n_seqs = 1  # of this step
        self.token = self.row = 0.0  # seconds that a token takes without drafts, and that a node's row adds
        self.forest: Forest
        # of what may be spent, half is the first one's, a quarter the second's
        self._shares = [spend / 2 ** min(d + 1, n - 1) if n > 1 else spend for d in range(n)]
        # by the number of sequences, in powers of two: who pays alone need not pay in company
        self._usual = {0: Mood([HOPE] * n, [0] * n, [0] * n)}
        self.step = 0.0  # seconds of the last one that was looked at, and what its sequences have taught
        self.moods: list[Mood] = []
        self._purse = 0.0  # seconds that attempts may take
        self._filled = 0  # step up to which it has its share
        self._same: Sequence[Seq] = ()  # of that step
        self._asked: dict[int, list[int]] = {}  # and who was asked for which
        self._until = 0  # step up to which nobody is asked for them
        self._steady = 0  # and up to which the same are

    def sleeps(self, seqs: Sequence[Seq]) -> bool:
        """Whether nobody is asked in this step, of sequences that were all in the last one. Most steps are
        such where nothing can be foreseen, so it must cost next to nothing, however many they are."""
        self.clock += 1
        self.n_seqs = len(seqs)
        return self.clock < self._until and seqs == self._same

    def look_back(self, seq: Seq, mood: Mood) -> bool:
        """Let those that rest but would have been right of late hope anew, for a sequence that is alone: in
        company rows are dear, and a hope in vain costs all. Returns whether there are any."""
        wakes = False
        for d, drafter in self.telling.items():
            if mood.gain[d] <= 0 and seq.n_new and drafter.right(seq, BACK) >= RIGHT:
                mood.until[d], mood.gain[d] = min(mood.until[d], self.clock), HOPE
                self._until, self._steady, wakes = 0, 0, True
        return wakes

    def goes_on(self, seqs: Sequence[Seq], k: Sequence[int]) -> dict[int, list[int]]:
        """Who is asked as in the step before, for the same sequences, since they all pay and nobody else
        wakes; {} where that has to be looked at."""
        if self.clock >= self._steady or seqs != self._same or min(k) < 1:
            return {}
        for mood in self.moods:
            mood.tree = -1
        return self._asked

    def wake(
        self, seqs: Sequence[Seq], moods: Sequence[Mood], k: Sequence[int], own: float, step: float
    ) -> dict[int, list[int]]:
        """Who is asked, and for which sequences: those that pay; and those that did not pay so far, of each
        drafter all together, once what is saved is enough for that. k: rows that a draft may be deep; own:
        seconds that an asking takes beside the drafter; step: that the step takes without drafts."""
        now, share = self.clock, self.spend * step
        self._purse = min(self._purse + (now - self._filled) * share, SAVED * share)
        self._filled, self.step, self.moods = now, step, list(moods)
        asked, tries = dict[int, list[int]](), dict[int, list[int]]()
        telling = self.telling if len(seqs) == 1 else ()
        for i, mood in enumerate(moods):
            mood.asked, mood.tried, mood.tree = [], [], -1
            for d in mood.awake(now) if k[i] > 0 else ():
                if mood.gain[d] > 0:
                    mood.asked.append(d)
                    asked.setdefault(d, []).append(i)
                elif seqs[i].n_new and d not in telling:  # its end is the model's own by now
                    tries.setdefault(d, []).append(i)
        left, most, until = self._purse, SAVED * share, FOREVER
        for d, of in sorted(tries.items()):
            price = sum(min(self._asks(d) + (0.0 if moods[i].asked else own), step) for i in of)
            if left >= min(price, most):
                left -= price
                asked.setdefault(d, []).extend(of)
                for i in of:
                    moods[i].asked.append(d)
                    moods[i].tried.append(d)
            else:
                until = min(until, now + math.ceil((min(price, most) - left) / share))
        for d in range(len(self.proposes)):
            rests = [m.until[d] for m in moods if m.until[d] > now and d not in telling]
            if rests:  # there is no point in waking to what cannot be paid for
                price = min(self._asks(d) + own, most)
                until = min(until, max(min(rests), now + math.ceil((price - left) / share) if share else 0))
        able = all(n > 0 and s.n_new for n, s in zip(k, seqs, strict=True))
        self._same, self._asked = seqs, asked
        self._until = until if able and not asked else 0
        self._steady = min(until, now + STEADY) if able and asked and not any(m.tried for m in moods) else 0
        return asked

    def begin(self) -> Mood:
        """Of a new sequence."""
        cheap = [self._asks(d) < CHEAP * self.step for d in range(len(self.proposes))]
        return self._of_size().again(self.clock, cheap)

    def _of_size(self) -> Mood:
        """What is usual among so many sequences; at first what it was among others."""
        size = self.n_seqs.bit_length()
        if size not in self._usual:
            other = self._usual[min(self._usual, key=lambda n: abs(n - size))]
            self._usual[size] = Mood(other.gain, other.failed, other.until)
        return self._usual[size]

    def judge(self, mood: Mood, run: Sequence[int], stood: Sequence[int], own: float) -> None:
        """Let those of a sequence that were not worth their time rest.

        run, stood: nodes by the drafter that proposed them first, () where there are none at all; own:
        seconds that the asking took beside the drafters."""
        step, usual = self.step, self._of_size()
        for d in mood.asked:
            seconds = min(self._asks(d) + own / len(mood.asked), step)  # one that was slow is no measure
            gain = (stood[d] * self.token - run[d] * self.row if run else 0.0) - seconds
            if gain <= 0 and d in mood.tried:
                self._purse -= seconds
            gain = gain * self.n_seqs / step if step > 0 else 0.0
            share = self._shares[d] * step / self.n_seqs
            weight = IDLE if self.n_seqs > 1 and run and not any(run) else RECENT
            mood.judge(d, gain, int(seconds / share) if share > 0 else 0, self.clock, weight)
            if mood.gain[d] <= 0:
                self._steady = 0
            usual.gain[d] += weight * (gain - usual.gain[d])
            usual.failed[d], usual.until[d] = mood.failed[d], mood.until[d]

    def _asks(self, d: int) -> float:
        return self.proposes[d].seconds + self.learns[d].seconds
