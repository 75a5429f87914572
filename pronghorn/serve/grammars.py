"""Requests with a grammar are prepared in threads of their own, for a bounded time.

What takes too long is refused and goes on only here, where it keeps no other request from being prepared.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pronghorn.compose import parse, slot_of
from pronghorn.serve.errors import ApiError

if TYPE_CHECKING:
    from pronghorn.engine import Engine, Prepared
    from pronghorn.seq import Request

THREADS = 2
KNOWN = 1024  # grammars that were fine, remembered


class Grammars:
    """seconds: that preparing a request, its grammar opened, may take."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="pronghorn-grammar")
        self._fine: OrderedDict[tuple[int, int], None] = OrderedDict()  # by hash, of vocabulary and method

    async def opened(self, engine: Engine, request: Request) -> Request | Prepared:
        """The request, prepared where it brings a constraint that nobody brought before. Raises `ApiError`
        and what `Engine.prepare` raises."""
        keys = [(id(engine.tokenizer), hash(m)) for m in _constraints(request.use)]
        ready = request if all(key in self._fine for key in keys) else await self._prepared(engine, request)
        for key in keys:
            self._fine[key] = None
            self._fine.move_to_end(key)
        while len(self._fine) > KNOWN:
            self._fine.popitem(last=False)
        return ready

    async def _prepared(self, engine: Engine, request: Request) -> Prepared:
        begun = threading.Event()

        def attempt() -> Prepared:
            begun.set()
            return engine.prepare(request)

        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.run_in_executor(self._threads, attempt), self.seconds)
        except asyncio.TimeoutError:
            if not begun.is_set():
                raise ApiError(
                    429, "other schemas are being read: ask again in a moment", code="busy", retry=1
                ) from None
            raise ApiError(
                400, f"the schema or pattern was not ready after {self.seconds:g} s: simplify it",
                code="schema_too_complex",
            ) from None  # fmt: skip


def _constraints(use: Sequence[Any]) -> list[Any]:
    """Those among a request's methods. Raises `MethodError`."""
    pairs = [parse(m, files=False) if isinstance(m, str) else (slot_of(m), m) for m in use]
    return [method for slot, method in pairs if slot == "constrain"]
