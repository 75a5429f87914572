"""Replay of a trace at several arrival rates: throughput, latencies, and requests that met their targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from figures import Outcome, Solo, percentile
from load import call
from servers import Server
from traces import Trace, factor, load, passage, replay, scaled
from turns import Turns, in_turn, say

SHARES = (0.25, 0.5, 0.75, 1.0, 1.5)  # of the rate at which the first engine answers all requests at once
AT_ONCE = 1e5  # requests a second
SOLO_NEW = 33  # tokens of an answer alone
SOLO_TIMES = 3
LONG = 90  # percentile of prompt lengths that `Solo` is measured with


@dataclass(frozen=True)
class Plan:
    """requests: of a run; rates: a second, none for SHARES of a measured one; rounds: turns at each rate."""

    requests: int
    rates: tuple[float, ...]
    rounds: int
    context: int
    seed: int
    data: Path


def sweep(turns: Turns, name: str, plan: Plan, text: Sequence[int]) -> dict[str, Any]:
    """The trace at each rate, every engine in turn."""
    items = load(name, plan.data)
    by = factor(items, plan.context)
    long = int(percentile([scaled(i, by).prompt for i in items], LONG))
    alone = {s.label: solo(turns, s, long, text) for s in turns.servers}
    best = Solo(min(x.ttft for x in alone.values()), min(x.pace for x in alone.values()))
    for who, x in alone.items():
        say(
            f"{who} alone: first token of {long} after {x.ttft * 1000:.0f} ms, then every {x.pace * 1000:.1f}"
        )
    runs = []
    rates = plan.rates

    def at(rate: float, salt: str) -> Trace:
        return replay(name, plan.requests, rate, plan.context, text, plan.seed, salt, plan.data)

    def once(server: Server, rate: float, k: int) -> dict[str, Any]:
        trace = at(rate, f"{rate:g} {k}")
        calls = [call(a.at, a.ids, a.new) for a in trace.arrivals]
        return turns.replay(server, calls, rate=rate, round=k, compressed=trace.compressed)

    if not rates:
        say("all at once")
        runs.append(once(turns.servers[0], AT_ONCE, 0))
        capacity = runs[0]["whole"] / runs[0]["seconds"]
        rates = tuple(round(capacity * share, 3) for share in SHARES)
    for rate in rates:
        for k in range(plan.rounds):
            say(f"{name}, {rate:g} requests/s, round {k + 1} of {plan.rounds}")
            runs += [once(server, rate, k) for server in turns.order(k)]
    return {
        "trace": name, "requests": plan.requests, "factor": by, "long": long, "rates": list(rates),
        "alone": {who: asdict(x) for who, x in alone.items()}, "solo": asdict(best), "runs": runs,
    }  # fmt: skip


def solo(turns: Turns, server: Server, n: int, text: Sequence[int]) -> Solo:
    calls = [call(0.0, passage(text, n, f"solo {k}"), SOLO_NEW) for k in range(SOLO_TIMES)]
    with turns.turn(server, {}):
        outcomes: list[Outcome] = in_turn(server.port, calls)
    whole = [o for o in outcomes if o.whole]
    if not whole:
        raise SystemExit(f"{server.label} gives no answer: {outcomes[0].error}")
    return Solo(median(o.ttft for o in whole), median(o.pace for o in whole))
