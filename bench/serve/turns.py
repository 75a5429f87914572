"""Servers that take turns: all are loaded, one runs and the others are stopped, and the machine's limits are
measured beside every run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from figures import Outcome, summary
from load import Call, call, replay
from servers import Server

from pronghorn.bench.limits import BYTES, Probe

WARM = tuple(range(100, 164))  # token ids of a prompt that wakes a server up


class Turns:
    """Starts the servers; `with` ends them."""

    def __init__(self, servers: Sequence[Server], threads: int) -> None:
        self.servers = list(servers)
        self._probe = Probe(threads)
        self._stack = ExitStack()

    def __enter__(self) -> Turns:
        try:
            for server in self.servers:
                say(f"starting {server.name}")
                self._stack.enter_context(server)
                replay(server.port, [call(0.0, WARM, 8)])
                server.pause()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def order(self, turn: int) -> list[Server]:
        """Who goes first changes from turn to turn."""
        k = turn % len(self.servers)
        return self.servers[k:] + self.servers[:k]

    @contextmanager
    def turn(self, server: Server, into: dict[str, Any]) -> Iterator[None]:
        """Everybody else is stopped. What the machine could do before and after, and the processor time that
        the server took, go `into` a record."""
        server.go_on()
        try:
            before, cpu, begin = self._probe.measure(BYTES), server.cpu(), time.perf_counter()
            yield
            server.check()
            into.update(
                engine=server.label, server_cpu=server.cpu() - cpu, wall=time.perf_counter() - begin,
                resident=server.resident(), limits=[asdict(before), asdict(self._probe.measure(BYTES))],
            )  # fmt: skip
        finally:
            server.pause()

    def replay(self, server: Server, calls: Sequence[Call], **facts: Any) -> dict[str, Any]:
        """The record of a run of calls."""
        record: dict[str, Any] = dict(facts)
        with self.turn(server, record):
            run = replay(server.port, calls)
            record |= {**summary(run.outcomes), "client_cpu": run.cpu / run.wall}
        say(
            f"{server.label}: {record['whole']} of {record['sent']} in {record['seconds']:.1f} s, "
            f"{record['tokens_per_second']:.0f} tokens/s, "
            f"first {_ms(record['ttft'])}, gap {_ms(record['gap'])} {record['errors'] or ''}"
        )
        return record


def in_turn(port: int, calls: Sequence[Call]) -> list[Outcome]:
    """One call after the other."""
    return [replay(port, [c]).outcomes[0] for c in calls]


def _ms(of: dict[str, float]) -> str:
    return "/".join(f"{x * 1000:.0f}" for x in of.values()) + " ms"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
