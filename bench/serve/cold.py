"""From the start of a server's process to the first token that a client gets."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from load import call, replay
from servers import Server
from turns import WARM, say

from pronghorn.bench.engines import forget


def cold(servers: Sequence[Server], rounds: int) -> dict[str, Any]:
    """In turns. The first start of each has the model's files out of the system's cache, where it lets us."""
    runs = []
    for k in range(rounds):
        for of in servers:
            dropped = k == 0 and forget(of.weights)
            with replace(of) as server:
                run = replay(server.port, [call(0.0, WARM, 8)])
                outcome = run.outcomes[0]
                if not outcome.whole:
                    raise SystemExit(f"{server.label}: {outcome.error}")
                first = run.begin - server.begin + outcome.first
                runs.append(
                    {
                        "engine": server.label, "round": k, "cold": dropped, "ready": server.started,
                        "first": first, "resident": server.resident(),
                    }
                )  # fmt: skip
            say(f"{server.label}: ready after {server.started:.2f} s, first token after {first:.2f}")
            time.sleep(0.2)
    return {"runs": runs}
