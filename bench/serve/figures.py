"""From what clients saw to figures: percentiles, and goodput under latency targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

QUANTILES = (50, 99)


@dataclass
class Outcome:
    """One request as its client saw it; times in seconds since the run began.

    due: when it should be sent, from which latencies count, so that a late client hides nothing; gaps: time
    between tokens, one for each token after the first: of tokens that come in one chunk, the first waited
    and the others did not; left: the client went away on purpose; error: "" when the answer is whole."""

    due: float
    prompt: int
    new: int  # tokens asked for
    user: str = ""
    sent: float = math.nan
    first: float = math.nan
    last: float = math.nan
    tokens: int = 0
    chunks: list[tuple[float, int]] = field(default_factory=list)  # when, and how many tokens
    left: bool = False
    error: str = ""

    @property
    def ttft(self) -> float:
        """Time to the first token."""
        return self.first - self.due

    @property
    def seconds(self) -> float:
        return self.last - self.due

    @property
    def pace(self) -> float:
        """Mean time between tokens; 0 for an answer of one."""
        return (self.last - self.first) / (self.tokens - 1) if self.tokens > 1 else 0.0

    @property
    def whole(self) -> bool:
        return not self.error and not self.left and self.tokens > 0

    def gaps(self, begin: float = -math.inf, end: float = math.inf) -> list[float]:
        """Gaps that end after `begin` and start before `end`."""
        out: list[float] = []
        for (before, _), (now, n) in zip(self.chunks, self.chunks[1:], strict=False):
            if now > begin and before < end:
                out += [now - before, *([0.0] * (n - 1))]
        return out


@dataclass(frozen=True)
class Target:
    """Latencies within which an answer is good: to the first token, and between tokens on average."""

    name: str
    ttft: float
    pace: float

    def met(self, ttft: float, pace: float) -> bool:
        return ttft <= self.ttft and pace <= self.pace


@dataclass(frozen=True)
class Solo:
    """The fastest engine alone on the machine: seconds to the first token of a long prompt of the trace
    (longer than nine in ten), and between tokens."""

    ttft: float
    pace: float

    def targets(self) -> tuple[Target, Target]:
        return (
            Target("tight", TIGHT * self.ttft, TIGHT * self.pace),
            Target("loose", LOOSE * self.ttft, LOOSE * self.pace),
        )


TIGHT, LOOSE = 4, 12  # times the latency of the fastest engine alone


def percentile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least q % do not exceed; NaN of nothing."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * q / 100) - 1)]


def quantiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": percentile(values, q) for q in QUANTILES}


def makespan(outcomes: Sequence[Outcome]) -> float:
    """From the first request due to the last token."""
    ends = [o.last for o in outcomes if o.whole]
    return max(ends) - min(o.due for o in outcomes) if ends else math.nan


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What is kept of a run. requests: [prompt, new, time to first token, pace, seconds] of the whole ones,
    from which goodput under any targets follows."""
    whole = [o for o in outcomes if o.whole]
    seconds = makespan(outcomes)
    errors: dict[str, int] = {}
    for o in outcomes:
        if o.error:
            errors[o.error] = errors.get(o.error, 0) + 1
    return {
        "sent": len(outcomes),
        "whole": len(whole),
        "left": sum(o.left for o in outcomes),
        "short": sum(o.tokens != o.new for o in whole),
        "errors": errors,
        "seconds": seconds,
        "prompt_tokens": sum(o.prompt for o in whole),
        "new_tokens": sum(o.tokens for o in whole),
        "tokens_per_second": sum(o.tokens for o in whole) / seconds,
        "ttft": quantiles([o.ttft for o in whole]),
        "gap": quantiles([g for o in whole for g in o.gaps()]),
        "late": quantiles([o.sent - o.due for o in outcomes if not math.isnan(o.sent)]),
        "requests": [[o.prompt, o.tokens, _r(o.ttft), _r(o.pace), _r(o.seconds)] for o in whole],
    }


def goodput(run: dict[str, Any], target: Target) -> float:
    """Requests a second that met the target, over the whole run, its tail included."""
    good = sum(target.met(ttft, pace) for _, _, ttft, pace, _ in run["requests"])
    return float(good / run["seconds"]) if good else 0.0


def share(run: dict[str, Any], target: Target) -> float:
    """Of all requests sent, how many met the target."""
    return sum(target.met(ttft, pace) for _, _, ttft, pace, _ in run["requests"]) / run["sent"]


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Of the line of least squares, per unit of time; 0 of fewer than two points."""
    n = len(times)
    if n < 2:
        return 0.0
    t, v = sum(times) / n, sum(values) / n
    below = sum((a - t) ** 2 for a in times)
    return sum((a - t) * (b - v) for a, b in zip(times, values, strict=True)) / below if below else 0.0


def _r(x: float) -> float:
    return round(x, 5)
