"""What stands before every endpoint: who asks, how much, how fast; and the id and the clock of a request.

Plain ASGI, one layer: a request passes here once, whatever its endpoint does with it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from hashlib import sha256
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pronghorn.serve.errors import ApiError, as_api_error, error_response

if TYPE_CHECKING:
    from pronghorn.serve.context import Context

LOG = logging.getLogger("pronghorn.serve")
OPEN = ("/health", "/", "/page", "/favicon.ico", "/openapi.json")  # without a key; nothing of a user is there
STILL = ("/health", "/metrics", "/pronghorn/state")  # answered while draining


class Guard:
    """Checks a request, gives it an id, counts it."""

    def __init__(self, app: ASGIApp, ctx: Context) -> None:
        self.app, self.ctx = app, ctx
        self.keys = [sha256(k.encode()).digest() for k in ctx.settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.monotonic()
        headers = Headers(scope=scope)
        id_ = _request_id(headers.get("x-request-id", ""))
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = id_
                out["x-content-type-options"] = "nosniff"
            await send(message)

        counts = scope["path"] not in STILL
        self.ctx.active += counts
        try:
            self._admit(scope, headers)
            await self.app(scope, _Bounded(receive, headers, self.ctx), told)
        except Exception as error:
            known = as_api_error(error)
            if known.status == 500:
                LOG.exception("request %s failed", id_)
            if status:
                raise
            await error_response(known, scope["path"])(scope, receive, told)
        finally:
            self.ctx.active -= counts
            route = scope.get("route")
            endpoint = getattr(route, "path", "other")
            self.ctx.meters.requests.labels(endpoint, str(status)).inc()
            self.ctx.meters.duration.labels(endpoint).observe(time.monotonic() - begun)
            LOG.info(
                "%s %s %d", scope["method"], scope["path"], status,
                extra={"id": id_, "seconds": round(time.monotonic() - begun, 4), "status": status},
            )  # fmt: skip

    def _admit(self, scope: Scope, headers: Headers) -> None:
        path: str = scope["path"]
        if self.keys and not self._is_open(path):
            scope.setdefault("state", {})["key"] = self._key(headers)
        if self.ctx.draining and path not in STILL:
            raise ApiError(503, "the server is shutting down", code="draining", retry=5)
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.ctx.settings.max_body:
            raise too_large(self.ctx.settings.max_body)

    def _is_open(self, path: str) -> bool:
        if path == "/metrics":
            return self.ctx.settings.open_metrics
        return path in OPEN or path.startswith("/page/")

    def _key(self, headers: Headers) -> str:
        """Which key this is, as a name that may be shown. Every key is compared, in constant time."""
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        digest = sha256(given.encode()).digest()
        found = [i for i, key in enumerate(self.keys) if hmac.compare_digest(key, digest)]
        if not found:
            what = "this API key is not known" if given else "an API key is needed: send it as a Bearer token"
            raise ApiError(401, what, code="invalid_api_key")
        return f"key{found[0]}"


def too_large(most: int) -> ApiError:
    return ApiError(413, f"the body has more than {most} bytes", code="body_too_large")


class _Bounded:
    """The body as it arrives: no larger and no slower than allowed."""

    def __init__(self, receive: Receive, headers: Headers, ctx: Context) -> None:
        self.receive, self.settings = receive, ctx.settings
        self.size, self.whole = 0, False
        self.until = time.monotonic() + ctx.settings.body_timeout

    async def __call__(self) -> Message:
        if self.whole:
            return await self.receive()
        try:
            message = await asyncio.wait_for(self.receive(), self.until - time.monotonic())
        except asyncio.TimeoutError:
            raise ApiError(408, "the body did not arrive in time", code="body_timeout") from None
        self.size += len(message.get("body", b""))
        if self.size > self.settings.max_body:
            raise too_large(self.settings.max_body)
        self.whole = not message.get("more_body", False)
        return message


def _request_id(given: str) -> str:
    """The client's own id where it is short and printable, else a new one."""
    if 0 < len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return f"req_{secrets.token_hex(12)}"
