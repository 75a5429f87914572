"""What steps cost here, measured before the first one that counts.

Synthetic steps are run and told to the engine's `StepCost`; steps that follow take their place.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pronghorn.cost import reads
from pronghorn.types import Rows

if TYPE_CHECKING:
    from pronghorn.engine import Engine
    from pronghorn.kv.store import SeqKV

REPEATS = 9  # of one size at most


@dataclass(frozen=True)
class Trials:
    """sizes: rows of the synthetic steps, rising; long: of those behind `context` KV rows; seconds: nothing
    is begun that would take it beyond this."""

    sizes: tuple[int, ...]
    context: int
    long: tuple[int, ...]
    seconds: float


SERVING = Trials((1, 4, 16, 64, 256), 1024, (1, 64), 0.4)
DRAFTS = Trials((1, 4, 8, 16), 256, (1, 8), 0.1)  # somebody waits for the first word


def calibrate(engine: Engine, trials: Trials = SERVING) -> None:
    """Run a few steps of made-up rows and time them, so that a plan is sensible from the first step on.
    Nothing of it stays in the store. Ends early where steps take long."""
    kv, most = engine.store.new(), min(engine.bound.context, engine.kv_rows)
    share = trials.seconds / (len(trials.sizes) + len(trials.long))
    trial = _Trial(engine, kv, time.monotonic() + trials.seconds, share)
    try:
        if all(trial.repeated(n) for n in trials.sizes if n <= most):
            trial.lengthen(min(trials.context, most - trials.sizes[-1]), trials.sizes[-1])
            for n in trials.long:
                trial.repeated(n)
    finally:
        engine.store.free(kv)


def calibrate_drafts(engine: Engine) -> None:
    """The same for steps with drafts alone, which have few rows. Else the first one, if something holds it
    up, says for long that drafts do not pay: nobody tries again what is dear."""
    calibrate(engine, DRAFTS)


@dataclass(frozen=True)
class _Trial:
    """Made-up rows of one sequence. end: when it must be over; share: seconds for steps of one size."""

    engine: Engine
    kv: SeqKV
    end: float
    share: float

    def repeated(self, n: int) -> bool:
        """Time some steps of n rows, after one that warms up; False where there is no time for more."""
        cost, begin, times = self.engine.cost, time.monotonic(), list[float]()
        last = cost.predict(n, 0)
        while len(times) < REPEATS + 1:
            now = time.monotonic()
            if now + last > self.end or (len(times) > 2 and now - begin > self.share):
                break
            last = self._timed(n)
            times.append(last)
        # where the first is slow it is not for want of warmth
        counted = times[1:] if times and times[0] <= self.share else times
        if counted:
            cost.suppose(n, reads(n, self.kv.length), statistics.median(counted))
        return len(times) > 1

    def _timed(self, n: int) -> float:
        engine = self.engine
        pos = self.kv.next_pos + np.arange(n, dtype=np.int32)
        ids = np.arange(1, n + 1, dtype=np.int32) % min(engine.bound.n_vocab, engine.tokenizer.n_vocab)
        want = np.zeros(n, np.int32)
        want[-1] = 1
        rows = Rows(ids, pos, pos + 1, np.zeros(n, np.int32), np.arange(-1, n - 1, dtype=np.int32), want)
        begin = time.perf_counter()
        engine.runner.run(rows, [self.kv], False)
        return time.perf_counter() - begin

    def lengthen(self, n: int, have: int) -> None:
        """Commit the last step's `have` rows again and again: what they hold does not matter, only that they
        are numbers."""
        store = self.engine.store
        while n > 0:
            take = min(n, have)
            addr, block, slot = store.reserve(self.kv, take)
            self.engine.runner.commit(np.arange(take, dtype=np.int32), addr, block, slot)
            store.extend(self.kv, range(self.kv.next_pos, self.kv.next_pos + take))
            n -= take
