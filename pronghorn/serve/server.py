"""The HTTP server: uvicorn, with time limits that it does not have, and an end in two steps."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pronghorn.serve.bind import BACKLOG

if TYPE_CHECKING:
    from fastapi import FastAPI

    from pronghorn.serve.context import Context

LOG = logging.getLogger("pronghorn.serve")


class Protocol(H11Protocol):
    """A connection that must say what it wants, and read what it is sent, within a time."""

    header_timeout = 20.0
    send_timeout = 60.0
    _arriving: asyncio.TimerHandle | None = None  # runs while a request's head is on its way
    _stuck: asyncio.TimerHandle | None = None  # runs while nothing more can be sent

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arriving = self.loop.call_later(self.header_timeout, transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._arriving = _cancelled(self._arriving)
        elif self._arriving is None:
            self._arriving = self.loop.call_later(self.header_timeout, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._arriving = _cancelled(self._arriving)
        self._stuck = _cancelled(self._stuck)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(self.send_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        self._stuck = _cancelled(self._stuck)
        super().resume_writing()


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """No timer; the one there was does not go off."""
    if timer is not None:
        timer.cancel()
    return None


class Server(uvicorn.Server):
    """Ends in two steps. `drain` (the first signal): no new requests, those that run have `seconds` to
    finish. `stop` (the second signal): at once."""

    def __init__(self, app: FastAPI, seconds: float, ready: Callable[[], None] = lambda: None) -> None:
        self.ctx: Context = app.state.ctx
        settings = self.ctx.settings
        limits = {"header_timeout": settings.header_timeout, "send_timeout": settings.send_timeout}
        super().__init__(
            uvicorn.Config(
                app, http=type("_Protocol", (Protocol,), limits), ws="none", lifespan="off", log_config=None,
                access_log=False, server_header=False, timeout_keep_alive=75, timeout_graceful_shutdown=1,
                backlog=BACKLOG,
            )
        )  # fmt: skip
        self.seconds, self.ready = seconds, ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Future[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.ctx.draining or self._loop is None:
            self.stop()
        else:
            self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Call on the event loop."""
        if not self.ctx.draining:
            self.ctx.draining = True
            LOG.info("finishing %d requests", self.ctx.active)
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        until = time.monotonic() + self.seconds
        while self.ctx.active and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self.should_exit = True

    def stop(self) -> None:
        self.ctx.draining = True
        self.should_exit = self.force_exit = True
