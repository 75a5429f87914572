"""Grammars are tried before a request is handed in: in threads of their own, for a bounded time.

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
    from pronghorn.model.tokenizer import Tokenizer

THREADS = 2
KNOWN = 1024  # grammars that were fine, remembered


class Grammars:
    """seconds: that opening one may take."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="pronghorn-grammar")
        self._fine: OrderedDict[tuple[int, int], None] = OrderedDict()  # by hash, of vocabulary and method

    async def check(self, tokenizer: Tokenizer, use: Sequence[Any]) -> None:
        """Open the constraints among a request's methods once. Raises `ApiError` and `RequestError`."""
        for spec in use:
            slot, method = parse(spec, files=False) if isinstance(spec, str) else (slot_of(spec), spec)
            if slot == "constrain":
                await self._try(tokenizer, method)

    async def _try(self, tokenizer: Tokenizer, method: Any) -> None:
        key = (id(tokenizer), hash(method))
        if key in self._fine:
            self._fine.move_to_end(key)
            return
        begun = threading.Event()

        def attempt() -> None:
            begun.set()
            method.open(tokenizer)

        loop = asyncio.get_running_loop()
        try:
            await asyncio.wait_for(loop.run_in_executor(self._threads, attempt), self.seconds)
        except asyncio.TimeoutError:
            if not begun.is_set():
                raise ApiError(
                    429, "other schemas are being read: ask again in a moment", code="busy", retry=1
                ) from None
            raise ApiError(
                400, f"the schema or pattern was not ready after {self.seconds:g} s: simplify it",
                code="schema_too_complex",
            ) from None  # fmt: skip
        self._fine[key] = None
        if len(self._fine) > KNOWN:
            self._fine.popitem(last=False)
