"""Whether a server stays whole: a long run of mixed requests with its memory watched (soak), and a thousand
clients at once of which half go away at any time (churn)."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import slope, summary
from load import Call, call, replay
from servers import OURS, Server
from state import idle, stored, view
from traces import passage
from turns import say

SEGMENT = 20.0  # seconds between looks at the memory
LEAVERS = 0.2  # share of a soak's clients that go away early
CLIENTS, SPREAD = 1000, 20.0  # of a churn, and the seconds within which half of them leave
ENDLESS = 800  # tokens that those ask for: they are not done when they leave
SETTLE = 60.0  # seconds that a server has to come to rest


def soak(server: Server, minutes: float, rate: float, text: Sequence[int], seed: int) -> dict[str, Any]:
    """`rate` requests a second of all lengths for so long; resident memory after each segment."""
    draw = random.Random(seed)
    begin, series, errors, whole, left = time.perf_counter(), [], 0, 0, 0
    while (now := time.perf_counter() - begin) < minutes * 60:
        run = replay(server.port, _mixed(server, draw, rate, text))
        server.check()
        errors += sum(bool(o.error) for o in run.outcomes)
        whole += sum(o.whole for o in run.outcomes)
        left += sum(o.left for o in run.outcomes)
        kv = view(server.port)["kv"] if server.name == OURS else {}
        series.append({"at": time.perf_counter() - begin, "resident": server.resident(), "kv": kv})
        say(f"{now / 60:.1f} min: {series[-1]['resident'] >> 20} MiB resident, {errors} errors")
    later = series[len(series) // 2 :]
    grows = slope([s["at"] for s in later], [s["resident"] for s in later])
    return {
        "engine": server.label, "minutes": minutes, "rate": rate, "whole": whole, "left": left,
        "errors": errors, "series": series, "grows": grows,
    }  # fmt: skip


def _mixed(server: Server, draw: random.Random, rate: float, text: Sequence[int]) -> list[Call]:
    """A segment: one in three begins as others do; some clients leave."""
    calls, at = [], draw.expovariate(rate)
    while at < SEGMENT:
        n = min(int(draw.lognormvariate(5, 1)) + 1, server.setting.context // 2)
        ids = passage(text, n, f"{draw.random()}")
        if draw.random() < 1 / 3:
            ids = passage(text, 256, f"common {draw.randrange(4)}") + ids
        new = draw.randint(1, 96)
        leave = draw.uniform(0, 2) if draw.random() < LEAVERS else float("inf")
        calls.append(call(at, ids, new, f"user {draw.randrange(5)}", leave))
        at += draw.expovariate(rate)
    return calls


def churn(server: Server, clients: int, text: Sequence[int], seed: int) -> dict[str, Any]:
    """All connect at once; half leave within SPREAD seconds. Then: does anything run or wait, is memory held
    that no stored prefix accounts for, are connections still open?"""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(4 * clients, 4096), most), most))
    draw = random.Random(seed)
    calls = []
    for i in range(clients):
        ids = passage(text, draw.randint(8, 128), f"client {seed} {i}")
        if i % 2:
            calls.append(call(0.0, ids, ENDLESS, leave=draw.uniform(0, SPREAD)))
        else:
            calls.append(call(0.0, ids, draw.randint(4, 32)))
    open_before, resident = _open(server), server.resident()
    run = replay(server.port, calls)
    server.check()
    record = summary(run.outcomes)
    record.update(clients=clients, engine=server.label, resident=[resident, server.resident()])
    if server.name == OURS:
        said = idle(server.port, SETTLE)
        record |= {
            "running": len(said["running"]), "waiting": len(said["waiting"]), "kv": said["kv"],
            "stored": stored(said),
        }  # fmt: skip
    record["open"] = [open_before, _open(server)]
    after = replay(server.port, [call(0.0, passage(text, 64, "afterwards"), 16)])
    record["answers"] = after.outcomes[0].whole
    say(
        f"{record['whole']} whole, {record['left']} left, errors {record['errors']}; afterwards "
        f"{ {k: record.get(k) for k in ('running', 'waiting', 'kv', 'stored', 'open', 'answers')} }"
    )
    return record


def _open(server: Server) -> int:
    """Files and connections of the process."""
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
