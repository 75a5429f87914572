"""What a reader gets of an answer as it grows, and where it waits for a reader that is slow."""

from __future__ import annotations

import threading
from asyncio import Future
from dataclasses import dataclass, field

from pronghorn.seq import Top
from pronghorn.types import Origin


@dataclass(frozen=True)
class Delta:
    """New output of one branch. finish: "" while it goes on, then "stop", "length", "cancelled" or "error".

    origins: one per token. logprobs and tops: one per token where they were asked for, else empty.
    """

    index: int
    text: str
    tokens: tuple[int, ...]
    origins: tuple[Origin, ...]
    logprobs: tuple[float, ...]
    tops: tuple[Top, ...]
    finish: str


@dataclass
class _Waiting:
    """Output of one branch that nobody has read yet."""

    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[Top] = field(default_factory=list)
    finish: str = ""


class Mailbox:
    """Between the engine's thread and one reader: at most one delta per branch, into which everything goes
    until it is read. So the writer never waits, and a reader that never comes costs the answer's size.

    `waiter` belongs to the reader's event loop: what it awaits while there is nothing to read.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}  # by branch, the one that waits longest first
        self.ended = False
        self.error: BaseException | None = None
        self.waiter: Future[None] | None = None

    def put(
        self,
        index: int,
        text: str,
        tokens: list[int],
        origins: list[Origin],
        logprobs: list[float],
        tops: list[Top],
        finish: str,
    ) -> None:
        with self._lock:
            w = self._waiting.get(index)
            if w is None:
                w = self._waiting[index] = _Waiting()
            w.text.append(text)
            w.tokens += tokens
            w.origins += origins
            w.logprobs += logprobs
            w.tops += tops
            w.finish = finish

    def end(self, error: BaseException | None) -> None:
        """Nothing follows. What waits can still be read, unless there is an error."""
        with self._lock:
            self.error, self.ended = error, True

    def take(self) -> Delta | None:
        """The delta that has waited longest, None when there is none. Raises the error that ended it."""
        with self._lock:
            if self.error is not None:
                raise self.error
            if not self._waiting:
                return None
            index = next(iter(self._waiting))
            w = self._waiting.pop(index)
        lists = tuple(w.tokens), tuple(w.origins), tuple(w.logprobs), tuple(w.tops)
        return Delta(index, "".join(w.text), *lists, w.finish)

    def wake(self) -> None:
        """On the reader's event loop: there may be something to read."""
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
