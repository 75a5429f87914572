"""Answers that end with their client: server-sent events, and whole bodies that are long in the making.

Both watch the connection while they work. A client that leaves cancels the work, which frees its pages.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pronghorn.serve.errors import ApiError, as_api_error, error_data, error_response, json_bytes

T = TypeVar("T")
LOG = logging.getLogger("pronghorn.serve")
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies that would hold events back
]


def event(data: Any, name: str = "") -> bytes:
    """One event; `name` for APIs that name theirs."""
    head = b"event: " + name.encode() + b"\n" if name else b""
    return head + b"data: " + json_bytes(data) + b"\n\n"


class GoneError(Exception):
    """The client left; nobody reads what would be answered."""


async def until_gone(receive: Receive) -> None:
    """Return when the client has left. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def attended(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves. Raises `GoneError` then."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(until_gone(receive))
    try:
        await asyncio.wait([task, watch], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise GoneError
        return task.result()
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # until its pages are free


async def whole(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """`attended` for an endpoint: whoever has left gets an answer that is not sent."""
    try:
        return await attended(request.receive, work)
    except GoneError:
        return Response(status_code=499)


class EventStream(Response):
    """Sends the events of a generator as they come.

    An error before the first event becomes a response with its own status, a later one an event made by
    `failed` (by default an error object as the OpenAI API sends it). The generator is closed when the
    client leaves.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        failed: Callable[[ApiError], bytes] = lambda error: event(error_data(error)),
    ) -> None:
        super().__init__()
        self.events, self.failed = events, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(GoneError):
            await attended(receive, self._send(scope, receive, send))

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        async with aclosing(self.events) as events:
            try:
                async for data in events:
                    if not started:
                        started = True
                        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except Exception as error:
                known = as_api_error(error)
                if known.status == 500:
                    LOG.exception("a stream failed")
                if not started:
                    await error_response(known, scope["path"])(scope, receive, send)
                    return
                await send({"type": "http.response.body", "body": self.failed(known), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
