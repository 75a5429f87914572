"""One long beginning and many endings, all at once: throughput with the beginning shared, and without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from load import call
from servers import OURS, Server
from state import counters
from traces import passage
from turns import Turns

PREFIX, SUFFIX, NEW, ENDINGS = 2000, 32, 64, 32


def prefix(turns: Turns, rounds: int, endings: Sequence[int], text: Sequence[int]) -> dict[str, Any]:
    """endings: how many requests share the beginning, one run for each number."""
    runs = []
    for k in range(rounds):
        for n in endings:
            runs += [_once(turns, server, n, k, text) for server in turns.order(k)]
    return {"prefix": PREFIX, "suffix": SUFFIX, "new": NEW, "runs": runs}


def _once(turns: Turns, server: Server, n: int, k: int, text: Sequence[int]) -> dict[str, Any]:
    shared = passage(text, PREFIX, f"prefix {n} {k}")  # another one for each run: nothing is stored yet
    calls = [call(0.0, shared + passage(text, SUFFIX, f"ending {n} {k} {i}"), NEW) for i in range(n)]
    server.go_on()
    before = counters(server.port) if server.name == OURS else {}
    record = turns.replay(server, calls, endings=n, round=k)
    server.go_on()
    after = counters(server.port) if server.name == OURS else {}
    server.pause()
    record["counted"] = {name: after[name] - before.get(name, 0.0) for name in after}
    return record
