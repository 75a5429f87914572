"""Counters and histograms of one model's service, written by its engine's thread.

Plain numbers, because a step of a small model is shorter than a few locked observations; `exposition`
turns them into Prometheus' families when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
ACCEPTED = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 16)


class Histogram:
    """counts[i]: observations in (bounds[i - 1], bounds[i]], the last one beyond all bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(float(b) for b in bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class Metrics:
    """finished: requests by how they ended ("stop", "length", "cancelled", "error", "refused")."""

    def __init__(self) -> None:
        self.finished: dict[str, int] = dict.fromkeys(("stop", "length", "cancelled", "error", "refused"), 0)
        self.prompt_tokens = 0
        self.new_tokens = 0
        self.reused_tokens = 0  # prompt tokens taken from stored states
        self.drafters: dict[str, tuple[int, int]] = {}  # tokens drafted and accepted, by whom
        self.forced = 0
        self.preempted = 0
        self.steps = 0
        self.kv_read_bytes = 0  # that attention read, as the runner counts them
        self.failed_steps = 0
        self.queue_time = Histogram(SECONDS)
        self.first_token = Histogram(SECONDS)
        self.between_tokens = Histogram(SECONDS)
        self.request = Histogram(SECONDS)
        self.step_time = Histogram(SECONDS)
        self.step_rows = Histogram(ROWS)
        self.accepted_length = Histogram(ACCEPTED)  # new tokens per step, one observation a sequence
