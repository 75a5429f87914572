"""How well KV methods keep what matters: the record of `pronghorn bench kv`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pronghorn.bench.kv_methods import PLAIN


def wilson(k: float, n: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z, p = 1.96, k / n
    mid, half = p + z * z / (2 * n), z * math.sqrt(max(0.0, (p * (1 - p) + z * z / (4 * n)) / n))
    return max(0.0, (mid - half) / (1 + z * z / n)), min(1.0, (mid + half) / (1 + z * z / n))


@dataclass(frozen=True)
class Result:
    """A method's figures in a task. share, use: see `kv_methods.Entry`; scores: of each text, from 0 to 1,
    or, where `perplexity`, its nats for each token. Means: rows, of a prompt; held, bytes of KV behind it;
    end, at the end; read, bytes in a step of decoding of one sequence, 0 where the runner does not tell."""

    task: str
    method: str
    share: int
    use: tuple[str, ...]
    scores: tuple[float, ...]
    perplexity: bool
    rows: float
    held: float
    end: float
    read: float

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task, self.method, self.share

    @property
    def figure(self) -> float:
        """The share of right answers, or the perplexity."""
        mean = statistics.fmean(self.scores)
        return math.exp(mean) if self.perplexity else mean

    @property
    def interval(self) -> tuple[float, float]:
        """95 %: Wilson's, with one trial for each text however often that was asked, or for perplexity the
        normal one of the texts' means."""
        n = len(self.scores)
        if not self.perplexity:
            return wilson(sum(self.scores), n)
        error = 1.96 * statistics.stdev(self.scores) / math.sqrt(n) if n > 1 else math.inf
        mean = statistics.fmean(self.scores)
        return math.exp(mean - error), math.exp(min(mean + error, 700.0))

    @property
    def bytes(self) -> float:
        """What it is said to hold: at the end where a long text was decoded, else behind the prompt."""
        return self.end if self.perplexity else self.held


@dataclass
class Record:
    """A whole run. length: tokens of a text with what is asked about it; skipped: tasks that could not be
    had, or in which plain decoding has nothing to lose, and why; failed: methods, and why."""

    machine: dict[str, str]
    model: str
    length: int
    items: int
    threads: int
    date: str = ""
    results: list[Result] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def find(self, task: str, method: str = PLAIN, share: int = 0) -> Result | None:
        return next((r for r in self.results if r.key == (task, method, share)), None)

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(r.task for r in self.results))

    def methods(self, share: int) -> list[str]:
        """Those that were measured at a share; 0: those without one."""
        return list(dict.fromkeys(r.method for r in self.results if r.share == share))

    @property
    def shares(self) -> list[int]:
        return sorted({r.share for r in self.results})

    def held(self, r: Result) -> float:
        """Bytes held over plain decoding's."""
        plain = self.find(r.task)
        return r.bytes / plain.bytes if plain else math.nan

    def read(self, r: Result) -> float:
        """Bytes read in a step over plain decoding's; NaN where they are not known."""
        plain = self.find(r.task)
        return r.read / plain.read if plain and plain.read else math.nan

    def same(self, other: Record) -> bool:
        """Whether what was measured there can stand here."""
        mine, theirs = (
            (x.model, x.length, x.items, x.machine.get("processor"), x.machine.get("instruction set"))
            for x in (self, other)
        )
        return mine == theirs

    def data(self) -> dict[str, Any]:
        """Everything as JSON has it, with what follows from the figures."""
        out = asdict(self)
        for r, said in zip(self.results, out["results"], strict=True):
            said |= {
                "figure": r.figure, "interval": list(r.interval), "held_of_plain": _known(self.held(r)),
                "read_of_plain": _known(self.read(r)),
            }  # fmt: skip
        return out


def _known(x: float) -> float | None:
    return None if math.isnan(x) else x


def record_of(data: Mapping[str, Any]) -> Record:
    """The record that was written by `Record.data`."""
    results = []
    for r in data["results"]:
        known = {k: v for k, v in r.items() if k in Result.__dataclass_fields__}
        results.append(Result(**{**known, "use": tuple(r["use"]), "scores": tuple(r["scores"])}))
    known = {k: v for k, v in data.items() if k in Record.__dataclass_fields__}
    return Record(**{**known, "results": results})


def ordered(results: Sequence[Result]) -> list[Result]:
    """Plain first, then by name, larger budgets first."""
    return sorted(results, key=lambda r: (r.method != PLAIN, r.share > 0, r.method, r.share))
