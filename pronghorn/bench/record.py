"""What was measured, before anybody rounds it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pronghorn.bench.attribute import Part, Verdict
from pronghorn.bench.cells import Cell
from pronghorn.bench.cost import Cost, Model
from pronghorn.bench.engines import Memory, Start
from pronghorn.bench.limits import Limits

OURS = "pronghorn"


@dataclass(frozen=True)
class Spread:
    """Of repeated measurements: the middle one and the extremes."""

    median: float
    low: float
    high: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Sample:
    """Seconds of one run, and the machine's limits just before and after it. round: in which engines took
    turns."""

    round: int
    seconds: float
    limits: Limits


@dataclass
class Result:
    """A cell. cost: of our own form of the weights; samples: of each engine; cannot: why one has none."""

    cell: Cell
    cost: Cost
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    cannot: dict[str, str] = field(default_factory=dict)

    def seconds(self, engine: str) -> Spread:
        return spread([s.seconds for s in self.samples[engine]])

    def rate(self, engine: str) -> Spread:
        """Tokens (or rows) a second."""
        return spread([self.cell.tokens / s.seconds for s in self.samples[engine]])

    def share(self, engine: str) -> Spread:
        """Of the measured limit, for an engine that reads the weights in our form."""
        limit = self.cost
        return spread(
            [s.limits.seconds(limit.n_bytes, limit.operations) / s.seconds for s in self.samples[engine]]
        )

    def read(self) -> float:
        """Bytes a second that the machine could read of what the cell reads."""
        return statistics.median(s.limits.read for x in self.samples.values() for s in x)

    def mode(self) -> str:
        """The memory's mode in most of the runs."""
        return statistics.mode(s.limits.mode for x in self.samples.values() for s in x)

    def ratio(self, engine: str) -> Spread:
        """How many times as fast Pronghorn is: ratio of the medians, and the extremes of the rounds'."""
        ours = {s.round: s.seconds for s in self.samples[OURS]}
        rounds = [s.seconds / ours[s.round] for s in self.samples[engine] if s.round in ours]
        middle = self.seconds(engine).median / self.seconds(OURS).median
        return Spread(middle, min(rounds), max(rounds), len(rounds))

    def over(self, one: Result, engine: str) -> Spread:
        """Time against another cell's in the same round: what more rows cost."""
        base = {s.round: s.seconds for s in one.samples.get(engine, [])}
        return spread([s.seconds / base[s.round] for s in self.samples[engine] if s.round in base])


@dataclass(frozen=True)
class Profile:
    """Where the time of a step, or of a whole prompt, went. seconds: it took; a verdict for each part."""

    cell: Cell
    seconds: float
    limits: Limits
    parts: list[Part]
    verdicts: list[Verdict]


@dataclass
class Record:
    """A whole run. starts: of each engine, "cold" (the checkpoint came from the disk), "warm" or "first",
    which may be either; loaded, peak: memory of each after loading and at the end; failed: why an engine
    was left out."""

    machine: dict[str, str]
    model: str
    use: tuple[str, ...]
    precision: str
    threads: int
    round_trip: float  # seconds for a cache line to another core and back
    costs: Model | None = None
    methods: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    starts: dict[str, dict[str, list[Start]]] = field(default_factory=dict)
    loaded: dict[str, Memory] = field(default_factory=dict)
    peak: dict[str, Memory] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """Everything as JSON has it, with what follows from the samples."""
        out = asdict(self)
        for result, said in zip(self.results, out["results"], strict=True):
            said["engines"] = {
                name: {
                    "rate": asdict(result.rate(name)),
                    "seconds": asdict(result.seconds(name)),
                    "share_of_limit": asdict(result.share(name)) if name == OURS else None,
                    "times_as_slow_as_pronghorn": asdict(result.ratio(name))
                    if name != OURS and OURS in result.samples
                    else None,
                }
                for name, samples in result.samples.items()
                if samples
            }
        return out
