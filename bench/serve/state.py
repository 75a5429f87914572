"""What our server says of itself: its live view, and the counters for Prometheus."""

from __future__ import annotations

import json
import time
from typing import Any

from load import get


def view(port: int) -> dict[str, Any]:
    out: dict[str, Any] = json.loads(get(port, "/pronghorn/state"))
    return out


def counters(port: int) -> dict[str, float]:
    """Totals of /metrics, summed over labels."""
    out: dict[str, float] = {}
    for line in get(port, "/metrics").decode().splitlines():
        name, _, value = line.rpartition(" ")
        plain = name.partition("{")[0]
        if not line.startswith("#") and plain.endswith(("_total", "_sum", "_count")):
            out[plain] = out.get(plain, 0.0) + float(value)
    return out


def idle(port: int, patience: float) -> dict[str, Any]:
    """The view once nothing runs or waits, or the last one within `patience` seconds."""
    end = time.monotonic() + patience
    view(port)  # a large tree takes a moment to look at: who asks too early sees it as it was
    while True:
        time.sleep(1.0)
        said = view(port)
        if (not said["running"] and not said["waiting"]) or time.monotonic() > end:
            return said


def stored(said: dict[str, Any]) -> int:
    """Bytes that stored prefixes hold in memory."""
    return sum(int(n["bytes"]) for n in said["cache"]["nodes"] if not n["on_disk"])
