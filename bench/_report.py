"""What the benchmarks say about themselves: where and how they ran."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence

from pronghorn.bench.record import Spread, spread

__all__ = ["Spread", "machine", "said", "spread", "table"]


def machine() -> dict[str, str]:
    """Processor, cores that this process may use, load of the last minute, Python."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "load": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
    }


def said(facts: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its columns aligned for a terminal."""
    wide = [max(len(r[i]) for r in (heads, *rows)) for i in range(len(heads))]
    lines = [
        "| " + " | ".join(x.ljust(w) for x, w in zip(r, wide, strict=True)) + " |" for r in (heads, *rows)
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in wide) + "|")
    return "\n".join(lines)
