"""What happens to running streams when a long prompt arrives: time between their tokens before and during."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from figures import percentile
from load import call, expected, one
from servers import Server
from traces import passage
from turns import Turns, in_turn, say

STREAMS = 8
PROMPT = 64  # tokens of a stream's prompt
SETTLED = 24  # tokens that every stream has when the long prompt comes
LONG = 4000
LONG_NEW = 4
MOST = 3000  # tokens that a stream asks for; it is left long before


def stall(turns: Turns, rounds: int, text: Sequence[int]) -> dict[str, Any]:
    runs = []
    for k in range(rounds):
        for server in turns.order(k):
            record: dict[str, Any] = {"round": k}
            with turns.turn(server, record):
                record |= asyncio.run(_once(server, f"{k}", text))
                alone = call(0.0, passage(text, LONG, f"alone {k}"), LONG_NEW)
                record["alone"] = in_turn(server.port, [alone])[0].ttft
            runs.append(record)
            say(
                f"{server.label}: gaps p99 {record['before']['p99'] * 1000:.0f} ms before, "
                f"{record['during']['p99'] * 1000:.0f} during, first token of the long one after "
                f"{record['ttft']:.2f} s (alone {record['alone']:.2f})"
            )
    return {"streams": STREAMS, "long": LONG, "runs": runs}


async def _once(server: Server, key: str, text: Sequence[int]) -> dict[str, Any]:
    room = server.setting.context - PROMPT
    calls = [call(0.0, passage(text, PROMPT, f"{key} stream {i}"), min(MOST, room)) for i in range(STREAMS)]
    begin = time.perf_counter()
    seen = [expected(c) for c in calls]
    streams = [asyncio.create_task(one(server.port, c, begin, o)) for c, o in zip(calls, seen, strict=True)]
    while any(sum(n for _, n in o.chunks) < SETTLED for o in seen):
        await asyncio.sleep(0.005)
        if any(t.done() for t in streams):
            raise SystemExit(f"{server.label}: a stream ended early: {[o.error for o in seen]}")
    long = call(time.perf_counter() - begin, passage(text, LONG, f"{key} long"), LONG_NEW)
    arrived = expected(long)
    await one(server.port, long, begin, arrived)
    for task in streams:
        task.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    if not arrived.whole:
        raise SystemExit(f"{server.label}: the long prompt got no answer: {arrived.error}")
    before = [g for o in seen for g in o.gaps(o.chunks[1][0], arrived.due)]
    during = [g for o in seen for g in o.gaps(arrived.due, arrived.first)]
    return {
        "ttft": arrived.ttft,
        "before": {"p50": median(before), "p99": percentile(before, 99), "max": max(before)},
        "during": {
            "p50": median(during) if during else math.nan, "p99": percentile(during, 99),
            "max": max(during, default=math.nan), "tokens": len(during),
        },
    }  # fmt: skip
