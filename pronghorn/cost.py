"""What a step costs on this machine, learned from the steps that it runs.

Seconds are fixed cost + rows x slope + KV rows read x slope: a straight line through what was seen, old
steps fading out.
"""

from __future__ import annotations

import numpy as np

FADE = 0.98  # weight of the past at each new step


class StepCost:
    def __init__(self) -> None:
        self._a = np.eye(3) * 1e-6  # normal equations
        self._b = np.zeros(3)
        self._x = np.zeros(3)

    def observe(self, rows: int, read: int, seconds: float) -> None:
        """One step: its rows, the KV rows that they attended to (summed over rows), how long it took."""
        f = np.array([1.0, rows, read * 1e-3])
        self._a = FADE * self._a + np.outer(f, f)
        self._b = FADE * self._b + f * seconds
        self._x = np.maximum(np.linalg.lstsq(self._a, self._b, rcond=None)[0], 0.0)

    def predict(self, rows: int, read: int) -> float:
        """Seconds of a step."""
        return float(self._x @ np.array([1.0, rows, read * 1e-3]))

    def rows_within(self, seconds: float, rows: int, read: int, context: int) -> int:
        """Further prompt rows of a sequence with `context` rows that fit into `seconds` on top of a step of
        `rows` rows that read `read`."""
        each = float(self._x[1] + self._x[2] * context * 1e-3)
        left = seconds - self.predict(rows, read)
        return max(0, int(left / each)) if each > 0 else 1 << 20

    def prefill(self, rows: int, context: int = 0) -> float:
        """Seconds to run `rows` rows of one prompt from position `context` on."""
        return self.predict(rows, rows * (context + rows // 2))
