"""What the benchmarks say about themselves: where and how they ran."""

from __future__ import annotations

from collections.abc import Sequence

from pronghorn.bench.limits import machine
from pronghorn.bench.record import Spread, spread

__all__ = ["Spread", "machine", "said", "spread", "table"]


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
