"""One user with many long requests and one with a few short ones: what the short ones wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from figures import Outcome, percentile
from load import Call, call, expected, one
from servers import Server
from traces import passage
from turns import Turns, in_turn, say

MANY, LONG, LONG_NEW = 50, 500, 200  # requests, tokens of a prompt, tokens of an answer
FEW, SHORT, SHORT_NEW = 5, 50, 20
HEAD = 2.0  # seconds that the heavy user is ahead


def fair(turns: Turns, rounds: int, text: Sequence[int]) -> dict[str, Any]:
    """The light user sends one request after the other, alone and then beside the heavy one."""
    runs = []
    for k in range(rounds):
        for server in turns.order(k):
            record: dict[str, Any] = {"round": k}
            with turns.turn(server, record):
                alone = in_turn(server.port, _short(f"alone {k}", text))
                beside, heavy = asyncio.run(_both(server, f"{k}", text))
            errors = [o.error for o in (*alone, *beside, *heavy) if o.error]
            record |= {
                "alone": [o.seconds for o in alone], "beside": [o.seconds for o in beside],
                "first": [o.ttft for o in beside], "heavy": max(o.last for o in heavy), "errors": errors,
            }  # fmt: skip
            runs.append(record)
            say(
                f"{server.label}: p95 {percentile(record['alone'], 95):.2f} s alone, "
                f"{percentile(record['beside'], 95):.2f} s beside {MANY} long ones"
            )
    return {"many": MANY, "few": FEW, "runs": runs}


def _short(key: str, text: Sequence[int]) -> list[Call]:
    return [call(0.0, passage(text, SHORT, f"short {key} {i}"), SHORT_NEW, user="light") for i in range(FEW)]


async def _both(server: Server, key: str, text: Sequence[int]) -> tuple[list[Outcome], list[Outcome]]:
    begin = time.perf_counter()
    long = [call(0.0, passage(text, LONG, f"long {key} {i}"), LONG_NEW, user="heavy") for i in range(MANY)]
    heavy = [asyncio.create_task(one(server.port, c, begin, expected(c))) for c in long]
    await asyncio.sleep(HEAD)
    beside = []
    for c in _short(key, text):
        due = expected(c)
        due.due = time.perf_counter() - begin
        beside.append(await one(server.port, c, begin, due))
    return beside, list(await asyncio.gather(*heavy))
