"""What the benchmarks say about themselves: where and how they ran."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from pronghorn.bench.gains_report import markdown as table
from pronghorn.bench.limits import machine
from pronghorn.bench.record import Spread, spread

__all__ = ["Spread", "into", "machine", "said", "spread", "table"]


def said(facts: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def into(path: Path, made: Mapping[str, str]) -> None:
    """Put tables where a page wants them: between a line `<!-- table: NAME -->` and a line `<!-- end -->`.
    Those that were not made stay as they are, which is said on stderr."""
    if not path.exists():
        raise SystemExit(f"{path} is not there: it is written by hand around the tables")
    text = path.read_text(encoding="utf-8")

    def put(found: re.Match[str]) -> str:
        if found[1] not in made:
            print(f"{path.name}: the table {found[1]!r} stays, as it was not measured here", file=sys.stderr)
            return found[0]
        return f"<!-- table: {found[1]} -->\n{made[found[1]]}\n<!-- end -->"

    path.write_text(
        re.sub(r"<!-- table: (.+?) -->\n.*?<!-- end -->", put, text, flags=re.S), encoding="utf-8"
    )
