"""Slower places for KV."""

from __future__ import annotations

import math
from typing import Any

from pronghorn.kv.store import SeqKV


class NoSwap:
    """No slower place: a preempted sequence runs its rows again."""

    def seconds(self, n_bytes: int) -> float:
        """To write so many bytes and read them back."""
        return math.inf

    def out(self, kv: SeqKV) -> Any:
        """Take a sequence's rows; its pages are freed once they are written. Returns a ticket."""
        raise NotImplementedError

    def back(self, ticket: Any) -> SeqKV:
        """The rows, bit for bit."""
        raise NotImplementedError

    def drop(self, ticket: Any) -> None:
        """They are not wanted any more."""
