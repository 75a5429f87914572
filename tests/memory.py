"""A process's memory, as the kernel counts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SMAPS = Path("/proc/self/smaps_rollup")  # not every system has it


def resident() -> int:
    """Bytes; 0 where the system does not tell."""
    if not SMAPS.exists():
        return 0
    lines = SMAPS.read_text(encoding="utf-8").splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("Rss:"))


def alone(code: str) -> None:
    """Run it in a process where nothing else comes and goes."""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[1], check=True)
