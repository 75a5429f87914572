"""What a step costs on this machine: learned from the steps themselves, for schedulers to plan with.

A step's seconds are a line in pieces over its rows, never falling, plus a price for each row of KV that is
read. Up to some ten rows a step reads the weights and costs nearly the same whatever the rows; then it
multiplies, and grows with them. Attention adds its reads.

Steps of a shared machine are noisy and what a server runs changes, so the last few steps of every kind (rows
and reads, by powers of two) are kept, and the curve is fitted to all of them, when somebody asks, by least
absolute relative errors: a step that others made three times as slow moves it no more than one a little too
slow. What lies outside everything seen is taken as no cheaper than in proportion.
"""

from __future__ import annotations

import time
from collections import deque

from pronghorn.ops.cpu import _native

KNOTS = tuple(1 << i for i in range(13))  # rows between which time is a straight line: 1, 2, 4, ... 4096
KEEP = 12  # steps of one kind that are remembered
ENOUGH = 4  # steps of a number of rows (by powers of two) after which trials of it are forgotten
EVERY = 64  # observations between two fits, once there are many
SHARE = 0.002  # of the time of steps that fits may take
GRACE = 2e-3  # seconds that they may take besides: what is known of a few steps changes fast


class StepCost:
    """An online model of a step's seconds. Before the first observation everything costs nothing."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], deque[tuple[int, int, float]]] = {}
        self._trials: dict[int, list[tuple[int, int, float]]] = {}  # by size, until steps of it were seen
        self._at = [0.0] * len(KNOTS)  # seconds of so many rows that read nothing
        self._read = 0.0  # seconds for each KV row read
        self._n = 0  # observations
        self._fresh = 0  # of them since the last fit
        self._due = False  # for a fit, whatever fits took so far
        self._seconds = 0.0  # that all steps took
        self._fits = 0.0  # that fits took

    def observe(self, rows: int, read: int, seconds: float) -> None:
        """One step: its rows, the KV rows that they attended to (summed over rows), and what it took."""
        if rows < 1 or seconds <= 0:
            return
        kind = _size(rows), (read // rows).bit_length()
        if kind not in self._seen:
            self._seen[kind] = deque(maxlen=KEEP)
            self._fresh = EVERY  # a step of a new kind says most
        self._seen[kind].append((rows, read, seconds))
        if kind[0] in self._trials and self.seen(rows) >= ENOUGH:
            del self._trials[kind[0]]
            self._due = True
        self._n += 1
        self._fresh += 1
        self._seconds += seconds

    def suppose(self, rows: int, read: int, seconds: float) -> None:
        """What a step took in the middle of some trials, which had the processor's caches for themselves and
        nobody to answer: it stands in for three steps of about so many rows, until there are `ENOUGH`."""
        self._trials.setdefault(_size(rows), []).extend([(rows, read, seconds)] * (ENOUGH - 1))
        self._n += 1
        self._fresh = EVERY

    def seen(self, rows: int) -> int:
        """Steps of about so many rows that are remembered."""
        size = _size(rows)
        return sum(len(steps) for (rows_, _), steps in self._seen.items() if rows_ == size)

    def _ask(self) -> None:
        """Fit anew where enough has been seen since, and fits have not taken too much of the time."""
        if not self._due:
            if self._fresh < min(EVERY, max(1, self._n // 4)):
                return
            if self._fits > GRACE + SHARE * self._seconds:
                return
        start = time.perf_counter()
        self._fresh, self._due = 0, False
        for _ in range(1 if self._fits else 3):  # what sizes in between take depends on the price of reads
            price = self._read
            self._fit()
            if self._read == price:
                break
        if self._seen:  # before the first step nobody waits
            self._fits += time.perf_counter() - start

    def predict(self, rows: int, read: int) -> float:
        """Seconds of a step. Never falls as rows or reads grow."""
        if rows <= 0:
            return 0.0
        at, price = self.curve()
        if rows >= KNOTS[-1]:
            return at[-1] * rows / KNOTS[-1] + price * read
        i = rows.bit_length() - 1
        return at[i] + (at[i + 1] - at[i]) * (rows - KNOTS[i]) / KNOTS[i] + price * read

    def curve(self) -> tuple[list[float], float]:
        """Seconds of steps of `KNOTS` rows that read nothing, and of each KV row that is read."""
        if self._fresh:
            self._ask()
        return self._at, self._read

    def rows_within(self, seconds: float, rows: int, read: int, context: int) -> int:
        """How many further rows of a prompt, from position `context` on, fit into `seconds` on top of a step
        of `rows` and `read`: 0 to 4096 in all."""
        low, high = 0, max(0, KNOTS[-1] - rows)
        while low < high:
            n = (low + high + 1) // 2
            if self.predict(rows + n, read + reads(n, context)) <= seconds:
                low = n
            else:
                high = n - 1
        return low

    def prefill(self, rows: int, context: int = 0, chunk: int = 512) -> float:
        """Seconds to run `rows` of one prompt from position `context`, `chunk` in a step."""
        whole, rest = divmod(max(rows, 0), chunk)
        inside = reads(rows, context) - whole * reads(chunk, 0) - reads(rest, 0)
        return (
            whole * self.predict(chunk, reads(chunk, 0))
            + self.predict(rest, reads(rest, 0))
            + self._read * inside
        )

    def saturation(self, most: int = KNOTS[-1]) -> int:
        """The fewest rows, `most` at most, whose step runs rows nearly (95 %) as fast as any."""
        sizes = [k for k in KNOTS if k < most] + [most]
        speed = [n / max(self.predict(n, 0), 1e-12) for n in sizes]
        return next(n for n, s in zip(sizes, speed, strict=True) if s >= 0.95 * max(speed))

    # ------------------------------------------------------------------ the fit

    def _fit(self) -> None:
        self._at, self._read = _native.fit_steps(
            [s for kind in (*self._seen.values(), *self._trials.values()) for s in kind], self._read
        )


def _size(rows: int) -> int:
    return (rows - 1).bit_length()


def reads(n: int, context: int = 0) -> int:
    """KV rows that n rows of one text read from position `context` on, each its own included."""
    return n * context + n * (n + 1) // 2
