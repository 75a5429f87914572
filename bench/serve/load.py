"""The load generator: streams many requests from a server and notes when each chunk came.

Open loop: requests go out when they are due, however far behind the server is. It speaks HTTP/1.1 itself, a
connection for each request, since it shares the machine's cores with the server: some 30 us of work for a
chunk. How much processor time it took is part of every result.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from figures import Outcome

HOST = "127.0.0.1"
PATIENCE = 600.0  # seconds that a whole run may go on after its last request was due


@dataclass(frozen=True)
class Call:
    """A request to be made. at: seconds after the run's begin; body: JSON for /v1/completions; leave: go away
    so many seconds after that, if the answer is not whole by then."""

    at: float
    prompt: int
    new: int
    body: bytes
    user: str = ""
    leave: float = math.inf


def call(at: float, ids: Sequence[int], new: int, user: str = "", leave: float = math.inf) -> Call:
    """A greedy request for exactly `new` tokens."""
    body = {
        "prompt": list(ids), "max_tokens": new, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True}, **({"user": user} if user else {}),
        "ignore_eos": True, "pronghorn": {"ignore_eos": True},  # theirs, and ours
    }  # fmt: skip
    return Call(at, len(ids), new, json.dumps(body).encode(), user, leave)


@dataclass(frozen=True)
class Run:
    """begin: when, on the clock of `time.perf_counter`; cpu: seconds of processor time that the generator
    took, of `wall` seconds in all."""

    begin: float
    outcomes: list[Outcome]
    cpu: float
    wall: float


class Chunks:
    """Events of a streamed HTTP answer, whatever pieces it comes in: chunked or up to the end of the
    connection. `status` is 0 before the head is there; `done` once the answer is whole."""

    def __init__(self) -> None:
        self.status = 0
        self.done = False
        self._chunked = False
        self._raw = bytearray()  # as it came
        self._body = bytearray()  # without the framing
        self._left = 0  # bytes of the chunk that has begun, its line end included

    def feed(self, data: bytes) -> list[bytes]:
        """What follows "data:" in the events that are whole now."""
        self._raw += data
        if not self.status and not self._head():
            return []
        if self._chunked:
            self._unframe()
        else:
            self._body += self._raw
            self._raw.clear()
        *lines, rest = self._body.split(b"\n")
        self._body = rest
        out = []
        for line in lines:
            if line.startswith(b"data:"):
                said = bytes(line[5:].strip())
                if said == b"[DONE]":
                    self.done = True
                else:
                    out.append(said)
        return out

    def rest(self) -> bytes:
        """A body that is no stream of events, so far."""
        return bytes(self._body)

    def _head(self) -> bool:
        end = self._raw.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._raw[:end]).lower()
        del self._raw[: end + 4]
        self.status = int(head.split(b" ", 2)[1])
        self._chunked = b"transfer-encoding: chunked" in head
        return True

    def _unframe(self) -> None:
        while self._raw and not self.done:
            if not self._left:
                end = self._raw.find(b"\r\n")
                if end < 0:
                    return
                size = int(bytes(self._raw[:end]).partition(b";")[0], 16)
                del self._raw[: end + 2]
                if not size:
                    self.done = True
                    return
                self._left = size + 2
            n = min(self._left, len(self._raw))
            self._body += self._raw[: max(0, min(n, self._left - 2))]
            del self._raw[:n]
            self._left -= n


def tokens_in(event: dict[str, Any]) -> int:
    """Tokens that an event brings: as many as it names, else one if it has text. Where a server joins tokens
    without naming them, gaps look longer than they are, not shorter."""
    choices = event.get("choices") or [{}]
    for named in (choices[0].get("token_ids"), choices[0].get("tokens")):
        if named is not None:
            return len(named)
    return 1 if choices[0].get("text") else 0


class _Stream(asyncio.Protocol):
    """One request on its own connection. Ends `finished` whatever happens."""

    def __init__(self, what: Call, outcome: Outcome, begin: float) -> None:
        self._what, self._to, self._begin = what, outcome, begin
        self._chunks = Chunks()
        self._total = 0  # as the server counted
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        body = self._what.body
        transport.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nAuthorization: Bearer none\r\nContent-Length: %d\r\n\r\n"
            % len(body) + body
        )  # fmt: skip
        self._to.sent = time.perf_counter() - self._begin
        if self._what.leave < math.inf:
            asyncio.get_running_loop().call_later(self._what.leave, self.leave)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter() - self._begin
        n = 0
        for said in self._chunks.feed(data):
            event = json.loads(said)
            if "error" in event:
                self._to.error = str(event["error"])[:200]
            n += tokens_in(event)
            self._total = (event.get("usage") or {}).get("completion_tokens") or self._total
        if n:
            if not self._to.chunks:
                self._to.first = now
            self._to.last = now
            self._to.chunks.append((now, n))
        if self._chunks.done and not self._to.chunks and self._total:  # tokens without text: there by now
            self._to.first = self._to.last = now
            self._to.chunks.append((now, self._total))
        if self._chunks.done and self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        to = self._to
        if self._chunks.status not in (0, 200):
            to.error = f"HTTP {self._chunks.status}: {self._chunks.rest()[:160].decode(errors='replace')}"
        elif not to.left and not to.error and not self._chunks.done:
            to.error = f"cut off: {exc or 'the connection ended'}"
        to.tokens = self._total or sum(n for _, n in to.chunks)
        if not self.finished.done():
            self.finished.set_result(None)

    def leave(self) -> None:
        if not self.finished.done() and not self._chunks.done and self._transport is not None:
            self._to.left = True
            self._transport.abort()


def expected(what: Call) -> Outcome:
    return Outcome(what.at, what.prompt, what.new, what.user)


async def one(port: int, what: Call, begin: float, outcome: Outcome) -> Outcome:
    """Make one request now; it was due at `what.at`. `outcome` grows while it streams. Cancelled, the client
    goes away."""
    try:
        _, stream = await asyncio.get_running_loop().create_connection(
            lambda: _Stream(what, outcome, begin), HOST, port
        )
    except OSError as error:
        outcome.error = f"no connection: {error}"
        return outcome
    try:
        await stream.finished
    except asyncio.CancelledError:
        stream.leave()
        raise
    return outcome


async def run(port: int, calls: Sequence[Call]) -> Run:
    """Make every call when it is due, and wait for all of them."""
    begin, cpu = time.perf_counter(), time.process_time()
    outcomes = [expected(c) for c in calls]

    async def due(what: Call, outcome: Outcome) -> None:
        await asyncio.sleep(begin + what.at - time.perf_counter())
        await one(port, what, begin, outcome)

    tasks = [asyncio.create_task(due(c, o)) for c, o in zip(calls, outcomes, strict=True)]
    _, late = await asyncio.wait(tasks, timeout=max(c.at for c in calls) + PATIENCE)
    for task in late:
        task.cancel()
    for outcome, end in zip(outcomes, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
        if isinstance(end, asyncio.CancelledError):
            outcome.left, outcome.error = False, "no end in time"
        elif end is not None:
            raise end
    return Run(begin, outcomes, time.process_time() - cpu, time.perf_counter() - begin)


def replay(port: int, calls: Sequence[Call]) -> Run:
    return asyncio.run(run(port, calls))


def get(port: int, path: str, timeout: float = 10.0) -> bytes:
    """The body of a GET. Raises `OSError`."""
    import http.client

    connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise OSError(f"{path}: HTTP {answer.status}")
        return body
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()
