"""From the engine's thread to an event loop: one call for everything that a step brought."""

from __future__ import annotations

import asyncio
import threading

from pronghorn.serve.delta import Mailbox

PACE = 0.004  # seconds between two rounds of deltas, at least: handing over costs more than a small step


class Bell:
    """Wakes the readers of one event loop.

    `mark` notes a mailbox that has something to read, `ring` tells the loop, both from any thread. Rounds
    keep `PACE`, on the loop's own timer: while each finds something, nobody needs to call the next one, which
    would hold up the caller until the loop has had its turn. What is urgent (a first token, an end) is told
    at once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lock = threading.Lock()
        self._marked: dict[int, Mailbox] = {}  # by identity
        self._urgent = False
        self._called = False  # a round is on its way
        self._hurried = False  # and it does not wait for the pace
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0.0

    def mark(self, box: Mailbox, urgent: bool) -> None:
        with self._lock:
            self._marked[id(box)] = box
            self._urgent = self._urgent or urgent

    def ring(self) -> bool:
        """False when the loop is closed: nobody reads there any more."""
        if self.loop.is_closed():
            return False
        with self._lock:
            if not self._marked or (self._called and (self._hurried or not self._urgent)):
                return True
            self._called, self._hurried = True, self._urgent
        try:
            self.loop.call_soon_threadsafe(self._round)
        except RuntimeError:
            return False
        return True

    def _round(self) -> None:
        now = self.loop.time()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self._lock:
            if not self._marked:
                self._called = self._hurried = False
                return
            early = self._last + PACE - now
            if early > 0 and not self._urgent:
                self._timer = self.loop.call_later(early, self._round)
                return
            boxes, self._marked = self._marked, {}
            self._urgent = self._hurried = False
        self._last = now
        self._timer = self.loop.call_later(PACE, self._round)
        for box in boxes.values():
            box.wake()
