"""What the machine can do at most, measured beside every result.

On a shared machine both change by the minute: whoever shares its memory takes bandwidth, and the host may
move the cores closer together (one path to memory for both: narrow) or apart (a path each: wide).
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from pronghorn.ops.cpu import _native

BYTES = 256 << 20  # read by the probe: far more than caches hold
CACHED = 192 << 20  # working sets below may lie in a cache in part
PASSES = 3  # the best counts: whatever else runs can only slow a pass down
WIDE = 1.5  # all threads together against one: wide from here on


@dataclass(frozen=True)
class Limits:
    """memory: bytes a second that all threads together read from memory; one: that one alone reads; read:
    all together of a working set of the size that is asked about, which caches may hold in part; peaks:
    operations a second by all of them, "fp32", "bf16" and "int8" where the processor has instructions."""

    memory: float
    one: float
    read: float
    peaks: dict[str, float]

    def peak(self, kind: str) -> float:
        """The peak of a kind of arithmetic; where the processor has none, of what stands in for it."""
        order = ("int8", "bf16", "fp32")
        return next(self.peaks[k] for k in order[order.index(kind) :] if k in self.peaks)

    @property
    def mode(self) -> str:
        """Whether threads share one path to memory."""
        return "wide" if self.memory > WIDE * self.one else "narrow"

    def seconds(self, n_bytes: float, operations: dict[str, float]) -> float:
        """The shortest time in which bytes can be read and operations be done, one beside the other."""
        return max(n_bytes / self.read, sum(n / self.peak(kind) for kind, n in operations.items()))


class Probe:
    """Measures limits with so many threads; 0: as many as the engine takes."""

    def __init__(self, threads: int) -> None:
        from pronghorn.run.native import physical_cores

        self.threads = threads or physical_cores()
        self._probe = _native.Probe(self.threads, BYTES)

    def measure(self, n_bytes: float) -> Limits:
        """For a working set of `n_bytes`. Some 40 ms."""
        n = self.threads
        peaks = {
            kind: max(self._probe.peak(kind, n) for _ in range(PASSES)) for kind in ("fp32", "bf16", "int8")
        }
        memory = read = max(self._probe.read(n, BYTES) for _ in range(PASSES))
        one = max(self._probe.read(1, BYTES) for _ in range(PASSES)) if n > 1 else memory
        memory = read = max(memory, one)  # where it is less, something else was running
        if n_bytes < CACHED:
            read = max(memory, *(self._probe.read(n, int(n_bytes)) for _ in range(PASSES)))
        return Limits(memory, one, read, {kind: x for kind, x in peaks.items() if x > 0})

    def round_trip(self) -> float:
        """Seconds that a cache line takes to another core and back; 0 with one thread."""
        trips = [self._probe.round_trip() for _ in range(PASSES)] if self.threads > 1 else []
        return min((t for t in trips if t > 0), default=0.0)


def between(a: Limits, b: Limits) -> Limits:
    """What to compare a result with that was measured between the two."""
    peaks = {k: max(a.peaks[k], b.peaks[k]) for k in a.peaks}
    return Limits((a.memory + b.memory) / 2, (a.one + b.one) / 2, (a.read + b.read) / 2, peaks)


def machine() -> dict[str, str]:
    """Processor, cores that this process may use, memory, load of the last minute, instruction set."""
    names = _values("/proc/cpuinfo", "model name")
    memory = _values("/proc/meminfo", "MemTotal")
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else "",
        "memory": memory[0] if memory else "",
        "load": f"{os.getloadavg()[0]:.2f}",
        "instruction set": _native.isa(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _values(path: str, name: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return []
    return [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith(name)]
