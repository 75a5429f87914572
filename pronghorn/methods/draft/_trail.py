"""What a drafter knows of a text besides its tokens: kept under the text's end, not under the sequence.

A fork, or a sequence that lost its memory, has the same text and so finds it again; two texts that end alike
share it, which costs a draft at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
Key = tuple[int, ...]

TAIL = 12  # tokens by which a text is known, beside its length


class Trail(Generic[T]):
    """At most `most` entries; the one that was written longest ago gives way. A value is not changed once it
    is in."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: dict[Key, T] = {}

    def __len__(self) -> int:
        return len(self._held)

    def get(self, tokens: Sequence[int], n: int, default: T) -> T:
        """What was put for the first n of `tokens`."""
        return self._held.get(_key(tokens, n), default)

    def put(self, tokens: Sequence[int], value: T) -> None:
        key = _key(tokens, len(tokens))
        self._held.pop(key, None)
        self._held[key] = value
        if len(self._held) > self.most:
            del self._held[next(iter(self._held))]


def _key(tokens: Sequence[int], n: int) -> Key:
    return (n, *tokens[max(0, n - TAIL) : n])
